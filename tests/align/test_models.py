import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from align.adapter import Preset, trainable
from align.errors import UserError
from align.families import family_of
from align.models import (
    check_model,
    is_hub_id,
    load,
    load_processor,
    locate,
    resolve_device,
    resolve_dtype,
    save_processor,
)
from tests.tiny import tiny_idefics3, tiny_llava, tiny_mllama, tiny_tokenizer
from tests.tiny_families import CONFIGS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def base(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "base"))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    model, _ = trainable(str(base), Preset(rank=2), "auto", "cpu", 0)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("build", [tiny_mllama, tiny_idefics3, tiny_llava])
def test_a_folder_gives_its_own_weights_and_processor(build: Callable[[Path], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = build(tmp_path / "m")
    check_model(str(folder))
    model, processor = load(str(folder))
    assert not model.training
    stored = sorted(float(t.double().sum()) for t in load_file(folder / "model.safetensors").values())
    assert sorted(float(p.detach().double().sum()) for p in model.parameters()) == stored
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}],
        add_generation_prompt=True,
    )
    picture = Image.effect_noise((32, 32), 90).convert("RGB")
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape[1] > inputs["input_ids"].shape[1]
    assert type(processor.image_processor).__name__.endswith("Pil")
    again = tmp_path / "again"
    save_processor(processor, again)
    (again / "config.json").write_text((folder / "config.json").read_text())
    copied = load_processor(again)(images=[picture], text=[text], return_tensors="pt")
    assert all(torch.equal(copied[k], inputs[k]) for k in inputs)


def test_a_processor_made_in_memory_is_written_too(base: Path, tmp_path: Path) -> None:
    processor = load_processor(base)
    del processor._loaded_from
    save_processor(processor, tmp_path / "p")
    assert (tmp_path / "p" / "tokenizer.json").read_text() == (base / "tokenizer.json").read_text()


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"])
def test_families_that_know_videos_work_without_torchvision(kind: str, tmp_path: Path) -> None:
    image = "<image>" if kind == "smolvlm" else "<|image_pad|>"
    tokens = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>") if kind == "smolvlm" else ()
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer(image, *tokens)
    CONFIGS[kind]().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if kind == "smolvlm":
        SmolVLMImageProcessorPil(
            size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
        ).save_pretrained(tmp_path)
        names = {"processor_class": "SmolVLMProcessor", "image_seq_len": 4}
        (tmp_path / "processor_config.json").write_text(json.dumps(names))
    else:
        Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 4096}).save_pretrained(
            tmp_path
        )
    (tmp_path / "video_preprocessor_config.json").write_text("{}")
    processor = load_processor(tmp_path)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    inputs = processor(images=[Image.new("RGB", (32, 32), "red")], text=[text], return_tensors="pt")
    # 32 x 32 pixels in patches of 4, merged 2 x 2; Idefics3's length is given
    assert (inputs["input_ids"] == tokenizer.convert_tokens_to_ids(image)).sum() == (4 if kind == "smolvlm" else 16)
    family = family_of(CONFIGS[kind]())
    assert set(inputs) == {"input_ids", "attention_mask", *family.sequence_inputs, *family.image_inputs}
    save_processor(processor, tmp_path / "out")
    assert (tmp_path / "out" / "video_preprocessor_config.json").is_file()


class TestDtype:
    @pytest.mark.parametrize(
        ("own", "device", "asked", "expected"),
        [
            (torch.bfloat16, "cuda", "auto", torch.bfloat16),
            (torch.float16, "cuda", "auto", torch.float16),
            (torch.bfloat16, "cpu", "auto", torch.float32),
            (torch.float32, "cuda", "auto", torch.float32),
            (None, "cuda", "auto", torch.float32),
            (torch.float32, "cpu", "bfloat16", torch.bfloat16),
        ],
    )
    def test_rule(self, own: Any, device: str, asked: str, expected: torch.dtype) -> None:
        config = CONFIGS["llava"]()
        config.dtype = own
        assert resolve_dtype(asked, config, torch.device(device)) == expected

    def test_half_on_disk_is_float32_on_a_cpu(self, base: Path) -> None:
        load(str(base))[0].bfloat16().save_pretrained(base)
        assert load(str(base), device="cpu")[0].dtype == torch.float32
        assert load(str(base), dtype="bfloat16", device="cpu")[0].dtype == torch.bfloat16

    @pytest.mark.parametrize(("dtype", "device"), [("fp32", "cpu"), ("int8", "cpu"), ("auto", "gpu"), ("auto", "")])
    def test_names_that_are_none(self, base: Path, dtype: str, device: str) -> None:
        with pytest.raises(UserError, match="expected"):
            load(str(base), dtype, device)

    def test_every_process_of_a_launcher_takes_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert resolve_device("auto") == torch.device("cuda:0")
        monkeypatch.setenv("LOCAL_RANK", "3")
        assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:3")
        assert resolve_device("cuda:1") == torch.device("cuda:1")
        assert resolve_device("cpu") == torch.device("cpu")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, base: Path) -> None:
        with pytest.raises(UserError, match="no usable GPU"):
            load(str(base), device="cuda")


def _drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[next(n for n in tensors if n.endswith("linear_1.weight"))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _pickle(folder: Path, name: str, kept: str) -> None:
    (folder / kept).unlink()
    torch.save({}, folder / name)


def _edit(folder: Path, name: str, **values: Any) -> None:
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**data, **values}))


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: list[tuple[Callable[[Path], Any], str, bool]] = [  # how, the words of the error, found without loading
    (shutil.rmtree, "no such model folder", True),
    (lambda f: (f / "config.json").unlink(), "no config.json", True),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON", True),
    (lambda f: (f / "config.json").write_text("[]"), "a JSON object is expected", True),
    (lambda f: _edit(f, "config.json", model_type="llama"), "'llama' is no known vision-language family", True),
    (lambda f: (f / "model.safetensors").unlink(), "no weights", True),
    (lambda f: _pickle(f, "pytorch_model.bin", "model.safetensors"), "only pickled weights", True),
    (_shards, "2 of 2 weight files are missing", True),
    (_truncate, "the weights cannot be loaded", False),
    (_drop_tensor, "1 weights are missing from the files, first .*linear_1.weight", False),
    (lambda f: (f / "tokenizer.json").unlink(), "the processor cannot be loaded", False),
    (lambda f: (f / "processor_config.json").unlink(), "the processor cannot be loaded", False),
    (lambda f: _edit(f, "config.json", text_config={"model_type": "nonsense"}), "config.json: ", False),
]


@pytest.mark.parametrize(("spoil", "words", "cheap"), BROKEN, ids=[words[:25] for _, words, _ in BROKEN])
def test_a_broken_folder_is_one_clear_line(base: Path, spoil: Callable[[Path], Any], words: str, cheap: bool) -> None:
    spoil(base)
    if cheap:
        with pytest.raises(UserError, match=words):
            check_model(str(base))
    with pytest.raises(UserError, match=words) as caught:
        load(str(base))
    assert "\n" not in str(caught.value)


def _swap_lora(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k.replace("linear_1", "linear_9"): t for k, t in tensors.items()}, folder / "adapter_model.safetensors")


BROKEN_ADAPTERS: list[tuple[Callable[[Path], Any], str, bool]] = [
    (lambda f: shutil.rmtree(f.parent / "base"), "base model .* is not there", True),
    (lambda f: (f / "adapter_model.safetensors").unlink(), "no weights", True),
    (lambda f: _pickle(f, "adapter_model.bin", "adapter_model.safetensors"), "only pickled weights", True),
    (lambda f: _edit(f, "adapter_config.json", base_model_name_or_path=None), "does not say which model", True),
    (lambda f: _edit(f, "adapter_config.json", peft_type="IA3"), "a LoRA adapter is expected", True),
    (lambda f: shutil.copytree(f, f.parent / "base", dirs_exist_ok=True), "is itself an adapter", True),
    (lambda f: _edit(f, "adapter_config.json", r=3), "does not fit its base", False),
    (lambda f: _edit(f, "adapter_config.json", target_modules="nothing"), "does not fit its base", False),
    (_swap_lora, "the adapter's weights are not those", False),
]


@pytest.mark.parametrize(
    ("spoil", "words", "cheap"), BROKEN_ADAPTERS, ids=[words[:25] for _, words, _ in BROKEN_ADAPTERS]
)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_broken_adapter_is_one_clear_line(
    adapter: Path, spoil: Callable[[Path], Any], words: str, cheap: bool
) -> None:
    spoil(adapter)
    if cheap:
        with pytest.raises(UserError, match=words):
            check_model(str(adapter))
    with pytest.raises(UserError, match=words) as caught:
        load(str(adapter))
    assert "\n" not in str(caught.value)


def test_an_adapter_is_active_and_frozen(adapter: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file({k: t + 0.1 for k, t in load_file(path).items()}, path)
    check_model(str(adapter))
    adapted, processor = load(str(adapter))
    plain, _ = load(str(base))
    assert not any(p.requires_grad for p in adapted.parameters())
    assert not adapted.training
    inputs = processor(
        images=[Image.new("RGB", (32, 32), "blue")], text=["<image>what?"], return_tensors="pt"
    )  # the adapter folder has no processor: this is the base's
    with torch.no_grad():
        assert not torch.allclose(adapted(**inputs).logits, plain(**inputs).logits)


def test_a_base_may_be_named_relative_to_its_adapter(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _edit(adapter, "adapter_config.json", base_model_name_or_path="../base")
    moved = adapter.parent.rename(adapter.parent.with_name("elsewhere"))
    check_model(str(moved / "adapter"))
    load(str(moved / "adapter"))


def test_remote_code_is_never_run(base: Path, tmp_path: Path) -> None:
    (base / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    _edit(base, "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForImageTextToText": "evil.Evil"})
    _edit(base, "processor_config.json", auto_map={"AutoProcessor": "evil.Evil"})
    load(str(base))
    assert not (tmp_path / "ran").exists()


class TestHub:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.chdir(tmp_path)
        return tmp_path / "cache"

    @pytest.fixture
    def hub(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
        """A hub with one model, `org/tiny`, which has pickles and original weights beside its safetensors."""
        torch.save({}, base / "pytorch_model.bin")
        (base / "original").mkdir()
        (base / "original" / "params.json").write_text("{}")
        asked: list[str] = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, base, asked))
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield asked
        server.shutdown()
        server.server_close()

    def test_download_load_train_and_load_again(self, hub: list[str], cache: Path, tmp_path: Path) -> None:
        check_model("org/tiny")
        assert not hub  # a check asks nobody
        located = locate("org/tiny@main", weights=False)
        assert not list(located.folder.glob("*.safetensors"))
        model, processor = trainable("org/tiny@main", Preset(rank=2), "auto", "cpu", 0)
        files = {p.name for p in located.folder.rglob("*")}
        assert "model.safetensors" in files
        assert not files & {"pytorch_model.bin", "original", "params.json"}
        assert processor.tokenizer is not None
        model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
        config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", COMMIT)
        check_model(str(tmp_path / "a"))
        asked = len(hub)
        load(str(tmp_path / "a"))
        assert not [path for path in hub[asked:] if "resolve" in path]  # all of it is in the cache

    @pytest.mark.parametrize("name", ["org/none", "org/tiny@gone"])
    def test_what_the_hub_does_not_have(self, hub: list[str], name: str) -> None:
        with pytest.raises(UserError, match=f"{name}: .*on the hub") as caught:
            load(name)
        assert "\n" not in str(caught.value)

    def test_no_hub_at_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=r"org/tiny: cannot be downloaded, and is not in the local cache"):
            load("org/tiny")

    def test_a_cached_model_of_another_family_is_found_by_the_check(self, cache: Path) -> None:
        repo = cache / "models--org--text"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(COMMIT)
        (repo / "snapshots" / COMMIT).mkdir(parents=True)
        (repo / "snapshots" / COMMIT / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(UserError, match="'llama' is no known"):
            check_model("org/text")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("org/name", True), ("org/name@v1.0", True), ("./org/name", False), ("/abs/name", False), ("name", False)],
    )
    def test_names(self, name: str, expected: bool) -> None:
        assert is_hub_id(name) == expected

    def test_a_folder_goes_before_a_hub_id(self, tmp_path: Path) -> None:
        (tmp_path / "org" / "name").mkdir(parents=True)
        assert not is_hub_id("org/name")


class _Hub(SimpleHTTPRequestHandler):
    """What `snapshot_download` asks of the hub, for one repository."""

    def __init__(self, folder: Path, asked: list[str], *args: Any, **kwargs: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*args, **kwargs)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        headers = {"X-Repo-Commit": COMMIT}
        code, data = 200, b""
        if path in ("/api/models/org/tiny/revision/main", f"/api/models/org/tiny/revision/{COMMIT}"):
            siblings = [{"rfilename": str(p.relative_to(self.folder))} for p in files]
            data = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"/api/models/org/tiny/tree/{COMMIT}":
            data = json.dumps(
                [
                    {"type": "file", "path": str(p.relative_to(self.folder)), "size": p.stat().st_size, "oid": "0"}
                    for p in files
                ]
            ).encode()
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            file = self.folder / path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")
            if file.is_file():
                data, headers["ETag"] = file.read_bytes(), f'"{file.name}"'
            else:
                code, headers["X-Error-Code"] = 404, "EntryNotFound"
        else:
            code = 404
            headers["X-Error-Code"] = "RevisionNotFound" if "/org/tiny/" in path else "RepoNotFound"
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass
