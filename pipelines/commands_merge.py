"""`vlm-align merge`: a stage with KEY=VALUE words, or plain words for adapters and `out=` for a folder of one's own."""

import shutil
from pathlib import Path
from typing import Any

import click

from align.config import Source, build, parse_overrides, set_at
from align.errors import UserError


def with_folders(stage: click.Command) -> click.Command:
    """The `merge` stage's command, which also merges into a folder: `merge MODEL... out=FOLDER`."""
    pipeline = stage.callback
    assert pipeline is not None

    def command(words: tuple[str, ...], root: Path, **given: Any) -> None:
        models = [word for word in words if "=" not in word]
        rest = tuple(word for word in words if "=" in word)
        if models:
            merge_words(models, rest, root)
        elif any(word.startswith("out=") for word in rest):
            raise UserError("out= goes with the models before it: vlm-align merge MODEL... out=FOLDER")
        else:
            pipeline(words=words, root=root, **given)

    stage.callback = command
    stage.help = (
        f"{stage.help}\n\n  vlm-align merge MODEL... out=FOLDER writes a plain model into a folder of your own; "
        "a MODEL is an adapter's folder or RUN/stage, several are averaged (weights=[0.5,0.5])."
    )
    return stage


def merge_words(models: list[str], words: tuple[str, ...], root: Path) -> None:
    """Merge into a folder that is not there yet; it appears whole, with `merge.json` inside. Raises UserError."""
    from align.artifact import write_json
    from align.export import REPORT, Merge, save_merged, summary

    typed, source = parse_overrides(words), Source("vlm-align merge")
    target = typed.pop(("out",), None)
    if target is None or not target.text:
        raise UserError("out=FOLDER is required: where the merged model is to be written")
    given: dict[str, Any] = {}
    for key, word in typed.items():
        set_at(given, key, word.value)
        source.given(key, word.text)
    out = Path(target.text).expanduser()
    if out.exists():
        raise UserError(f"{out}: is there already; nothing was overwritten")
    found = [str(model_folder(name, root)) for name in models]
    stage = build(Merge, {"models": found, **given}, source)
    stage.check()
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        metrics = save_merged(stage.models, partial, stage.weights, stage.dtype, stage.device)
        write_json(partial / REPORT, metrics)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    click.echo(f"{out}: {metrics['family']}, {metrics['dtype']}\n{summary(metrics)}")


def model_folder(name: str, root: Path) -> Path:
    """An adapter's folder, or that of a finished stage's model by RUN/stage. Raises UserError."""
    path = Path(name).expanduser()
    if (path / "adapter_config.json").is_file() or (path / "config.json").is_file():
        return path.absolute()
    from pipelines.show import steps_of

    steps = steps_of(name, root)
    if len(steps) > 1:
        raise UserError(f"{name}: say which stage of the run: one of {', '.join(f'{name}/{s}' for s in steps)}")
    (artifact,) = steps.values()
    if not (artifact.path / "model").is_dir():
        raise UserError(f"{name}: this {artifact.manifest['stage']} stage has made no model")
    return artifact.path / "model"
