"""A run folder's config.json: what another start finds there."""

import json

import pytest

from igpt_model.errors import UserError
from igpt_model.training.run_log import open_run


def test_a_run_that_failed_before_its_first_checkpoint_may_be_corrected(tmp_path):
    assert open_run(tmp_path, {"train": {"batch_size": 512}}) == {}
    (tmp_path / "checkpoints").mkdir()
    assert open_run(tmp_path, {"train": {"batch_size": 8}}) == {}
    assert open_run(tmp_path, {"finetune": {"batch_size": 8}}) == {}
    assert json.loads((tmp_path / "config.json").read_text()) == {"finetune": {"batch_size": 8}}


@pytest.mark.parametrize("checkpoint", ["0000005", "damaged-0000005-1764170000"])
def test_a_run_with_a_checkpoint_is_refused(tmp_path, checkpoint):
    open_run(tmp_path, {"train": {"batch_size": 512}})
    (tmp_path / "checkpoints" / checkpoint).mkdir(parents=True)
    with pytest.raises(UserError, match=r"train\.batch_size: 512 there, 8 here"):
        open_run(tmp_path, {"train": {"batch_size": 8}})
    with pytest.raises(UserError, match="contains a run of `probekit train`"):
        open_run(tmp_path, {"finetune": {"batch_size": 8}})
    assert open_run(tmp_path, {"train": {"batch_size": 8}}, ["train.batch_size"]) == {"train.batch_size": 8}


def test_a_config_of_another_program_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UserError, match="contains a run with different settings"):
        open_run(tmp_path, {"train": {"batch_size": 8}})
    assert (tmp_path / "config.json").read_text() == '{"model_type": "vit"}'
