"""Models: names, true shapes, and that weights are either exactly the ones named or refused."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ddposink.assets import hub
from ddposink.errors import Unavailable
from ddposink.models import language, shapes
from ddposink.models.assembled import DATA
from ddposink.models.language import ModelRef, load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TINY = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer, as the model library saves them."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**TINY)).save_pretrained(folder)
    inner = Tokenizer(kinds.BPE({chr(97 + i): i for i in range(26)}, []))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 20)[None]).logits


def load(text: str, dtype: str = "float32") -> Any:
    return load_model(ModelRef.parse(text), dtype, "cpu")


@pytest.mark.parametrize(
    ("text", "kind", "name", "revision"),
    [
        ("smollm2-135m", "embedded", "smollm2-135m", None),
        ("random:llama-2-7b", "random", "llama-2-7b", None),
        (f"meta-llama/Llama-2-7b-hf@{COMMIT}", "hub", "meta-llama/Llama-2-7b-hf", COMMIT),
    ],
)
def test_models_are_named(text: str, kind: str, name: str, revision: str | None) -> None:
    ref = ModelRef.parse(text)
    assert (ref.kind, ref.name, ref.revision) == (kind, name, revision)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("smollm2-135", "unknown model 'smollm2-135'.*did you mean 'smollm2-135m'"),
        ("random:lama-2-7b", "unknown architecture 'lama-2-7b'.*did you mean 'llama-2-7b'"),
        ("meta-llama/Llama-2-7b-hf", "needs a pinned revision: write ORG/NAME@COMMIT"),
        ("meta-llama/Llama-2-7b-hf@main", "needs a pinned revision"),
        ("path:/no/such/folder", "config.json is missing"),
        ("bundled:none", "unknown bundled model 'none'"),
        ("bundled:emoji-sd/unet", "unknown bundled model 'emoji-sd/unet'"),
        (f"path:{DATA / 'sink-llama' / 'vanilla'}", "holds packed weights, .*: write bundled:NAME"),
        ("", "unknown model ''"),
    ],
)
def test_misspelt_models_say_what_would_be_right(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModelRef.parse(text)


PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "falcon-7b": 6_921_720_704,
    "mpt-7b": 6_649_286_656,
    "gpt-oss-20b": 20_914_757_184,
}


@pytest.mark.parametrize("name", sorted(shapes.SHAPES.keys() - {"tiny"}))  # nobody published that one
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = dict(shapes.SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_weights_have_the_shape_the_dtype_and_the_rotary_table(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY | {"rope_theta": 500.0})
    loaded, again = load("random:tiny", dtype), load("random:tiny", dtype)
    assert loaded.random_weights
    assert loaded.tokenizer is None
    assert loaded.train_length == 128
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert torch.equal(logits(loaded.model), logits(again.model))
    assert logits(loaded.model).std() > 0
    with_own_initialisation = LlamaForCausalLM(LlamaConfig(**TINY, rope_theta=500.0))
    wanted = with_own_initialisation.model.rotary_emb.inv_freq
    assert torch.allclose(loaded.model.model.rotary_emb.inv_freq.float(), wanted)
    assert loaded.facts["parameters"] == sum(p.numel() for p in with_own_initialisation.parameters())


def test_random_norms_and_biases_start_neutral(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"model_type": "gpt_neox", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64}
    monkeypatch.setitem(
        shapes.SHAPES, "neox", tiny | {"num_hidden_layers": 2, "num_attention_heads": 4, "rotary_pct": 0.25}
    )
    model = load("random:neox").model
    layer = model.gpt_neox.layers[0]
    assert (layer.input_layernorm.weight == 1).all()
    assert (layer.input_layernorm.bias == 0).all()
    assert (layer.attention.dense.bias == 0).all()
    assert logits(model).isfinite().all()


def test_a_local_folder_gives_its_weights_and_its_tokenizer(saved: Path) -> None:
    from transformers import LlamaForCausalLM

    loaded = load(f"path:{saved}")
    assert torch.equal(logits(loaded.model), logits(LlamaForCausalLM.from_pretrained(saved).eval()))
    assert loaded.tokenizer("b a")["input_ids"] == [1, 0]
    assert not loaded.random_weights
    assert loaded.train_length == 128
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.facts["architecture"] == "llama"
    config = ModelRef.parse(str(saved)).config_dict()
    assert config is not None
    assert config["num_key_value_heads"] == 2


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_a_model_trained_with_a_scaling_is_trained_for_all_its_positions(copy: Path, kind: str) -> None:
    """As Llama 3.1 and DeepSeek V3 were: what their scaling calls original is where they came from."""
    config = json.loads((copy / "config.json").read_text())
    scaling = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
    factors = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    (copy / "config.json").write_text(json.dumps(config | {"rope_parameters": scaling | factors}))
    assert load(f"path:{copy}").train_length == 128


def test_identity_of_a_folder_follows_its_files(copy: Path) -> None:
    ref = ModelRef.parse(str(copy))
    before = ref.identity()
    (copy / "README.md").write_text("prose")
    assert ref.identity() == before
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert ref.identity() != before


def test_pickled_weights_are_refused(copy: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(Unavailable, match="pickled weights are refused"):
        load(str(copy))


def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(Unavailable, match=r"lacks 1 of the model's weights.*layers\.1\.mlp\.up_proj"):
        load(str(copy))


def test_how_quantised_weights_are_computed_with_is_told(copy: Path) -> None:
    """A CPU has no fp8 kernels: the library dequantises, and only its own log said so."""
    config = json.loads((copy / "config.json").read_text())
    assert "quantization" not in load(f"path:{copy}").facts
    stored = {"quantization_config": {"quant_method": "fp8"}}
    (copy / "config.json").write_text(json.dumps(config | stored))
    assert load(f"path:{copy}").facts["quantization"] == "fp8, dequantised to float32"


def test_a_quantisation_that_nobody_knows_is_refused(copy: Path) -> None:
    """The library passed over it and took the stored numbers for weights."""
    config = json.loads((copy / "config.json").read_text())
    stored = {"quantization_config": {"quant_method": "nonsense"}}
    (copy / "config.json").write_text(json.dumps(config | stored))
    with pytest.raises(Unavailable, match="quantised by 'nonsense', which the library does not know"):
        load(f"path:{copy}")


def test_a_missing_shard_and_a_damaged_file_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(Unavailable, match="could not be loaded"):
        load(str(copy))
    weights.rename(copy / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(Unavailable, match="no complete safetensors weights"):
        load(str(copy))


@pytest.mark.parametrize("index", [b"{oops", b"[1]", b'{"metadata": {}}', b'{"weight_map": 3}', b"\xff"])
def test_an_index_that_is_none_is_said_in_one_sentence(copy: Path, index: bytes) -> None:
    (copy / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(ValueError, match="is no index of safetensors files"):
        load(f"path:{copy}")


@pytest.mark.parametrize("place", ["../elsewhere", "parts"])
def test_weights_that_no_identity_covers_are_refused(copy: Path, place: str) -> None:
    (copy / place).mkdir()
    shutil.move(copy / "model.safetensors", copy / place / "model.safetensors")
    names = {"weight_map": {"model.norm.weight": f"{place}/model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(names))
    with pytest.raises(Unavailable, match="no complete safetensors weights"):
        load(f"path:{copy}")


def test_an_adapter_beside_the_weights_is_refused(copy: Path) -> None:
    """It would be applied only where peft is installed, and hide that the model lacks weights."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(copy)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(copy)
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(Unavailable, match=r"holds an adapter .*merge it into the weights"):
        load(f"path:{copy}")


def test_code_that_comes_with_a_model_is_never_run(copy: Path, tmp_path: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    }
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(Unavailable, match="could not be loaded"):
        load(str(copy))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def cache(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local hub cache that holds ``tiny/llama`` at COMMIT, laid out as the hub library does."""
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--tiny--llama"
    shutil.copytree(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")  # nobody listens there
    return repository / "snapshots" / COMMIT


def test_a_cached_hub_model_needs_no_network(cache: Path, saved: Path) -> None:
    loaded = load(f"tiny/llama@{COMMIT}")
    assert torch.equal(logits(loaded.model), logits(load(str(saved)).model))
    assert loaded.ref.identity() == {"revision": COMMIT}


@pytest.mark.parametrize("text", [f"tiny/llama@{'f' * 40}", f"other/model@{COMMIT}"])
def test_a_hub_model_that_is_not_cached_is_unavailable_offline(cache: Path, text: str) -> None:
    with pytest.raises(Unavailable) as caught:
        load(text)
    message = str(caught.value)
    assert message.startswith("weights not available offline: ")
    assert "not in the local hub cache and 127.0.0.1 cannot be reached" in message
    assert "\n" not in message


def test_a_half_downloaded_hub_model_is_said_to_be_incomplete(cache: Path) -> None:
    (cache / "model.safetensors").unlink()
    with pytest.raises(Unavailable, match=r"weights not available offline: .* is incomplete"):
        load(f"tiny/llama@{COMMIT}")


def test_the_offline_switch_is_obeyed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "create_connection", no_network)
    with pytest.raises(Unavailable, match="HF_HUB_OFFLINE is set"):
        load(f"other/model@{COMMIT}")


def test_a_hub_that_refuses_is_quoted_in_one_line(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    real = huggingface_hub.snapshot_download

    def refuse(*args: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            return real(*args, **options)
        raise OSError("403 Client Error\n\nAccess to model other/model is restricted.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    with pytest.raises(
        Unavailable, match="could not be downloaded: 403 Client Error Access to model"
    ) as caught:
        load(f"other/model@{COMMIT}")
    assert "\n" not in str(caught.value)


def test_reachability_is_a_matter_of_a_port_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert hub.unreachable() is None
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        assert hub.unreachable() == "127.0.0.1 cannot be reached"
        monkeypatch.setenv("HTTPS_PROXY", address)  # the way out of many a cluster
        assert hub.unreachable() is None


def test_a_name_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(60) or socket.socket())
    assert hub.unreachable() is not None  # the test's own time limit would end a wait


def test_downloads_leave_second_copies_of_the_weights_alone() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "tokenizer.model", "model-00001-of-00002.safetensors"]
    others = ["consolidated.safetensors", "original/params.json", "onnx/model.safetensors"]
    files = [*wanted, *others, "pytorch_model.bin", "modeling_evil.py"]
    kept = filter_repo_objects(files, allow_patterns=hub.WANTED, ignore_patterns=hub.UNWANTED)
    assert list(kept) == wanted


@pytest.mark.assets
def test_smollm2_is_the_model_it_should_be() -> None:
    loaded = load("smollm2-135m")
    assert loaded.facts["parameters"] == PUBLISHED["smollm2-135m"]
    assert loaded.train_length == 8192
    config = loaded.model.config
    for name, value in shapes.SHAPES["smollm2-135m"].items():
        found = config.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(config, name)
        assert found == value, name
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.assets
def test_the_converted_weights_are_the_ones_in_the_asset() -> None:
    """Conversion is done once and kept; what is kept must be what the asset holds."""
    from transformers import AutoModelForCausalLM

    gguf = language.ASSETS["smollm2-135m-gguf"].path()
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    kept = load("smollm2-135m").model.state_dict()
    assert kept.keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, kept[name]), name


def test_a_configuration_that_says_less_than_the_weights_hold_is_refused(copy: Path) -> None:
    """The library leaves them out, and another model would be measured under this one's name."""
    from safetensors.torch import load_file, save_file

    config, weights = copy / "config.json", copy / "model.safetensors"
    text, tensors = config.read_text(), load_file(weights)
    layers = json.loads(text)["num_hidden_layers"]
    config.write_text(json.dumps(json.loads(text) | {"num_hidden_layers": layers - 1}))
    with pytest.raises(
        Unavailable, match=rf"holds \d+ weights that its config.json has no place for.*{layers - 1}"
    ):
        load(str(copy))
    config.write_text(text)
    name = "model.layers.0.self_attn.q_proj"
    bias = {f"{name}.bias": tensors[f"{name}.weight"][:, 0].clone()}
    save_file(tensors | bias, weights, {"format": "pt"})
    with pytest.raises(Unavailable, match=r"holds 1 weights.*q_proj\.bias"):
        load(str(copy))
    others = ("model.layers.0.self_attn.rotary_emb.inv_freq", "vision_tower.blocks.0.weight")
    save_file(
        tensors | {other: tensors[f"{name}.weight"][0].clone() for other in others}, weights, {"format": "pt"}
    )
    load(str(copy))


def test_weights_of_other_shapes_than_the_configuration_says(copy: Path) -> None:
    config = copy / "config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps(data | {"intermediate_size": data["intermediate_size"] * 2}))
    with pytest.raises(Unavailable, match=r"\d+ weights have other shapes than its config.json says"):
        load(str(copy))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": "lla', "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[1]", "no JSON object"),
    ],
)
def test_a_configuration_that_is_none(copy: Path, content: bytes, words: str) -> None:
    (copy / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        ModelRef.parse(str(copy)).config_dict()
    with pytest.raises(Unavailable, match="could not be loaded"):
        load(str(copy))
