"""The one list of stages: the word in YAML and on the command line, and where its class lives.

Classes are imported when they are asked for, so that listing the commands costs nothing.
"""

from importlib import import_module

from align.errors import UserError, did_you_mean
from align.stage import Stage

STAGES: dict[str, tuple[str, str]] = {
    "images": ("data_gen.images:Images", "a folder or a data set of images into a manifest"),
    "questions": ("data_gen.questions:Questions", "a file of questions with known answers into rows"),
    "generate": ("data_gen.generate:Generate", "a teacher asks and answers questions about the images"),
    "augment": ("data_gen.augment:Augment", "make questions and answers anew: reworded, harder, reasoned, terse, full"),
    "filter": ("data_gen.filter:Filter", "keep the questions worth training on, set the others aside with a reason"),
    "import-data": (
        "align.import_data:ImportData",
        "a data set of another tool (TRL, LLaVA, LLaMA-Factory, ms-swift) into rows",
    ),
    "export-data": (
        "align.export_data:ExportData",
        "rows as another tool keeps them, with a data set card; push to the hub",
    ),
    "safety": ("data_gen.safety:Safety", "prompts that are harmful, borderline or harmless, with right answers"),
    "sample": ("align.sample:Sample", "draw candidate answers from teacher and student"),
    "vote": ("align.vote:Vote", "the answer that most candidates agree on, where none is known"),
    "score": ("reward.score:ScoreStage", "score the candidates with a reward"),
    "graft": ("reward.graft:Graft", "a text reward model's language layers and head into a vision-language model"),
    "train-reward": ("reward.train:TrainReward", "train a reward model from preferences or scored candidates"),
    "best-of": (
        "reward.best_of:BestOf",
        "accuracy of the best of n answers by a reward, and of votes that it weighs, against mean, majority and pass@n",
    ),
    "reject": ("align.reject:Reject", "rejection sampling: the best answers, and preference pairs"),
    "edit-pairs": ("align.edit_pairs:EditPairs", "preference pairs by a deliberate error in the right answer"),
    "mix": ("align.mix:Mix", "one training set from several, by weights"),
    "mix-pairs": ("align.mix:MixPairs", "one set of preference pairs from several, by weights"),
    "sft": ("align.sft:SFT", "supervised fine-tuning of the vision adapter"),
    "dpo": ("align.dpo:DPO", "direct preference optimization of the vision adapter"),
    "merge": ("align.export:Merge", "merge an adapter, or the average of several, into a plain model"),
    "evaluate": ("align.evaluate:Evaluate", "accuracy on held-out images, base against trained"),
    "evaluate-safety": ("align.evaluate_safety:EvaluateSafety", "violation and false-refusal rates, before and after"),
    "draw-charts": ("pipelines.demo.stages:DrawCharts", "demo: draw charts with known ground truth"),
    "build-models": ("pipelines.demo.stages:BuildModels", "demo: build the small teacher and the small Mllama student"),
    "build-language-reward": (
        "pipelines.demo.stages:BuildLanguageReward",
        "demo: build a small reward model for text from the student's language model",
    ),
}


def stage_class(name: str) -> type[Stage]:
    """The class of a stage. Raises UserError for an unknown name."""
    if name not in STAGES:
        raise UserError(f"{name!r} is no stage{did_you_mean(name, STAGES)}")
    module, _, attribute = STAGES[name][0].partition(":")
    found: type[Stage] = getattr(import_module(module), attribute)
    return found
