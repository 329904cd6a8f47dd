"""The packaged configs that extract DSEC: the study's settings, and the time and room that their headers promise."""

from pathlib import Path

import huggingface_hub
import pytest

from xmsd_jax import config as configs
from xmsd_jax.config import ConfigError
from xmsd_jax.data.questions import QUESTIONS
from xmsd_jax.pipeline.extract import ExtractConfig
from xmsd_jax.pipeline.pair import pair_fingerprint
from xmsd_jax.runs import read_results

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = {"train": 52080, "test": 11000}


def packaged(split: str) -> ExtractConfig:
    return configs.load(ExtractConfig, configs.find(f"extract/dsec_{split}.yaml"))


@pytest.mark.parametrize("split", ANSWERS)
def test_settings_are_the_studys(split):
    config = packaged(split)
    nf4 = config.pair.quantisation
    assert (nf4.format, nf4.double, nf4.compute, config.pair.dtype) == ("nf4", True, "bfloat16", "bfloat16")
    assert {"lm_head", "video_tower", "visual_tower", "multi_modal_projector", "feature_adaptor"} <= set(nf4.keep)
    assert (config.max_new_tokens, len(config.questions), config.batch) == (50, len(QUESTIONS), None)
    assert (config.pair.event_frames.split, config.pair.event_frames.n) == ("count", 5)
    assert config.clips == Path(f"runs/clips/dsec_{split}/clips")
    assert (config.pair.target, config.pair.device) == ("LanguageBind/Video-LLaVA-7B-hf", "cuda")


@pytest.mark.parametrize("split", ANSWERS)
def test_the_header_tells_what_was_measured(split):
    header = configs.find(f"extract/dsec_{split}.yaml").read_text()
    rows = {(row.row, row.metric): row for row in read_results(ROOT / "results" / "extract_h100")[0]}
    both = {metric: row for (name, metric), row in rows.items() if name == "both models"}
    once, rate = both["study_minutes"].settings["once_seconds"], both["answers_per_second"].value
    minutes = (ANSWERS[split] / rate + once) / 60
    size = both["store_bytes_per_answer"].value
    assert f"{minutes:.0f} min for {ANSWERS[split]:,} answers, extrapolated from 600 of random weights" in header
    assert f"({rate:.1f} a second" in header
    assert f"{size / 1e6:.2f} MB an answer" in header
    assert f"Disk: {ANSWERS[split] * size / 1e9:.0f} GB" in header
    assert packaged(split).max_new_tokens == both["answers_per_second"].settings["N"]


def test_a_drafter_that_is_not_named_is_said_before_a_target_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("fetched"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^pair\.drafter: models/drafter/EventGPT-7b: no such folder; give"):
        pair_fingerprint(packaged("train").pair)
