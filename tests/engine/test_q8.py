"""The launcher's mend for 8-bit weights (kyutai-labs/moshi#271), with upstream's loader and layers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moshi.models import loaders
from safetensors.torch import load_file

from tests.engine.engine import call, running
from tests.engine.quantized import quantize, quantized_config


@pytest.fixture(scope="module")
def q8(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in 8 bits, laid out for serving."""
    serving, target = models / "serving", tmp_path_factory.mktemp("q8")
    config = json.loads((serving / "config.json").read_text())
    lm = {
        key: value
        for key, value in config.items()
        if key not in {"mimi_config_name", "model_type", "lm_gen_config"}
    }
    model = loaders.get_moshi_lm(serving / "moshi.safetensors", lm, dtype=torch.bfloat16)
    assert quantize(model, target / "moshi.safetensors") == 2 * 4 + 2 * (8 + 8 + 16) + 1 + 8 + 8
    quantized_config(serving / "config.json", target / "config.json")
    for name in ("mimi.safetensors", "tokenizer.model"):
        (target / name).symlink_to((serving / name).resolve())
    return target


def in_a_fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    """Patches of a module stay for the whole process, so each look at them gets one of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


LOAD = """
import json
from pathlib import Path
import torch
from moshi.models import loaders
from roles.moshi.files import launch
q8 = Path({q8!r})
if {mended}:
    launch.keep_scales_float32(loaders)
config = json.loads((q8 / "config.json").read_text())
del config["mimi_config_name"]
config.pop("model_type", None)
model = loaders.get_moshi_lm(q8 / "moshi.safetensors", config, dtype=torch.{dtype})
"""


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_as_released_the_first_step_refuses_the_scales(q8: Path, dtype: str) -> None:
    """When this fails, upstream has mended it: the launcher's part can go."""
    code = (
        LOAD.format(q8=str(q8), mended=False, dtype=dtype)
        + """
print(model.text_linear.weight_scb.dtype)
with torch.no_grad():
    model.text_linear(torch.zeros(1, 1, 64))
"""
    )
    done = in_a_fresh_process(code)
    assert done.stdout.strip() == f"torch.{dtype}"
    assert "Expected `weight_scb` to have type float" in done.stderr


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mended_every_scale_is_bit_for_bit_that_of_the_file(q8: Path, dtype: str) -> None:
    code = (
        LOAD.format(q8=str(q8), mended=True, dtype=dtype)
        + """
from safetensors.torch import load_file
stored, loaded = load_file(q8 / "moshi.safetensors"), model.state_dict()
scales = [name for name in stored if name.endswith("weight_scb")]
assert all(loaded[name].dtype == torch.float32 and torch.equal(loaded[name], stored[name]) for name in scales)
others = [v.dtype for name, v in loaded.items() if name not in scales and v.dtype.is_floating_point]
print(len(scales), set(others))
"""
    )
    done = in_a_fresh_process(code)
    assert done.stdout.strip() == f"89 {{torch.{dtype}}}", done.stderr


def test_scales_under_the_names_of_old_files_are_kept_too(q8: Path, tmp_path: Path) -> None:
    """Older files hold the projections of all steps in one tensor; upstream's hook splits it on loading."""
    from safetensors.torch import save_file

    stored = load_file(q8 / "moshi.safetensors")
    attention = "transformer.layers.0.self_attn."
    for suffix in ("", "_scb"):
        stored[f"{attention}in_proj_weight{suffix}"] = stored.pop(f"{attention}in_projs.0.weight{suffix}")
    save_file(stored, tmp_path / "moshi.safetensors")
    (tmp_path / "config.json").symlink_to(q8 / "config.json")
    code = (
        LOAD.format(q8=str(tmp_path), mended=True, dtype="bfloat16")
        + f"""
print(model.state_dict()["{attention}in_projs.0.weight_scb"].dtype)
"""
    )
    done = in_a_fresh_process(code)
    assert done.stdout.strip() == "torch.float32", done.stderr


def test_mended_the_model_computes_what_the_16_bit_one_does(q8: Path, models: Path) -> None:
    code = (
        LOAD.format(q8=str(q8), mended=True, dtype="bfloat16")
        + f"""
config.pop("quantize")
sixteen = loaders.get_moshi_lm({str(models / "serving/moshi.safetensors")!r}, config, dtype=torch.bfloat16)
torch.manual_seed(0)
x = torch.randn(1, 5, 64, dtype=torch.bfloat16)
with torch.no_grad():
    a, b = sixteen.text_linear(x).float(), model.text_linear(x).float()
print(float((a - b).norm() / a.norm()))
"""
    )
    done = in_a_fresh_process(code)
    assert float(done.stdout) < 0.03, done.stderr


async def test_mended_moshi_server_answers_with_8_bit_weights(q8: Path, tmp_path: Path) -> None:
    with running(q8, tmp_path / "state") as engine:
        heard = await call(engine.port, frames=6, pace=0.3)
    assert heard.first == b"\x00"
    assert heard.samples >= 4 * 1920
    assert "Traceback" not in engine.said()
