"""Folders of checkpoints: what counts as complete, what is kept, and that states come back to the bit."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.training import checkpoints

DECODER = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def made(folder, step, content="x"):
    path = checkpoints.begin(folder / f"checkpoint-{step}")
    (path / "inner").mkdir()
    (path / "inner" / "shard.bin").write_text(content)
    (path / "state.json").write_text("{}")
    checkpoints.finish(path)
    return path


def model(tied=True, layers=1):
    decoder = DECODER | {"tie_word_embeddings": tied, "num_hidden_layers": layers}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return ClsiForCausalLM(ClsiConfig(num_units=5, text_config=decoder))


def trained(network, steps=2, **options):
    optimizer = torch.optim.AdamW(network.parameters(), **({"lr": 1e-2, "betas": (0.9, 0.98)} | options))
    for step in range(steps):
        network(torch.tensor([[5, 1, 2 + step]]), labels=torch.tensor([[5, 1, 2 + step]])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


# --- folders ------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_complete_with_its_mark_and_all_files_in_full_length(tmp_path):
    path = made(tmp_path, 7)
    assert json.loads((path / "COMPLETE").read_text()) == {
        "step": 7,
        "files": {"inner/shard.bin": 1, "state.json": 2},
    }
    assert checkpoints.is_complete(path)
    (path / "state.json").write_text("{")
    assert not checkpoints.is_complete(path)
    (path / "state.json").unlink()
    assert not checkpoints.is_complete(path)
    (path / "state.json").write_text("{}")
    assert checkpoints.is_complete(path)
    (path / "COMPLETE").write_text('{"step": 7, "fil')
    assert not checkpoints.is_complete(path)


def test_the_newest_is_the_one_of_the_latest_step_not_of_the_greatest_name(tmp_path):
    assert checkpoints.newest(tmp_path / "nowhere") is None
    for step in (9, 100, 20):
        made(tmp_path, step)
    (tmp_path / "checkpoint-300").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-100"
    assert [path.name for path in checkpoints.remove_incomplete(tmp_path)] == ["checkpoint-300"]
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == [9, 20, 100]
    assert (tmp_path / "checkpoint-best").is_dir()


def test_removing_takes_the_mark_first(tmp_path, monkeypatch):
    path = made(tmp_path, 1)

    def killed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove(path)
    assert path.is_dir() and not checkpoints.is_complete(path)


def test_rotation_keeps_the_last_and_those_that_are_named(tmp_path):
    for step in (1, 2, 3, 4, 5):
        made(tmp_path, step)
    checkpoints.rotate(tmp_path, 2, keep=[2])
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == [2, 4, 5]
    with pytest.raises(ValueError, match="at least the last 2 checkpoints are kept, got a limit of 1"):
        checkpoints.rotate(tmp_path, 1)


def test_an_incomplete_folder_does_not_count_as_one_of_the_last(tmp_path):
    for step in (1, 2, 3):
        made(tmp_path, step)
    (tmp_path / "checkpoint-3" / "COMPLETE").unlink()
    checkpoints.rotate(tmp_path, 2)
    assert [checkpoints.step_of(path) for path in checkpoints.checkpoints(tmp_path)] == [1, 2, 3]


def test_beginning_removes_what_was_there_of_the_name(tmp_path):
    made(tmp_path, 4)
    assert list(checkpoints.begin(tmp_path / "checkpoint-4").iterdir()) == []


def test_finishing_again_counts_what_is_there_now(tmp_path):
    path = made(tmp_path, 4)
    (path / "state.json").write_text('{"more": 1}')
    checkpoints.finish(path)
    assert checkpoints.is_complete(path)


def test_another_folder_is_no_checkpoint():
    with pytest.raises(ValueError, match="is no checkpoint; expected a folder named checkpoint-N"):
        checkpoints.step_of("run/model")


def test_differences_name_every_value():
    saved = {"a": {"b": [1, {"c": 2}], "gone": 3}, "same": 1}
    current = {"a": {"b": [1, {"c": 5}], "new": None}, "same": 1}
    assert list(checkpoints.differences(saved, current)) == ["a.b[1].c is 2, not 5", "a.gone is 3, not null"]
    assert list(checkpoints.differences([1, 2], [1], "x")) == ["x is [1, 2], not [1]"]


def test_a_curve_comes_back_to_the_bit(tmp_path):
    curve = [{"loss": 0.1 + 0.2, "step": 1}, {"loss": float(np.float32(1) / 3), "step": 2}]
    checkpoints.write_curve(tmp_path / "curve.jsonl", curve)
    assert checkpoints.read_curve(tmp_path / "curve.jsonl") == curve
    assert [path.name for path in tmp_path.iterdir()] == ["curve.jsonl"]


# --- states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_and_the_models_config_is_not_touched(tmp_path, tied):
    source, other = model(tied), model(tied)
    trained(source)
    before = source.config.to_dict()
    checkpoints.save_weights(source, tmp_path)
    assert source.config.to_dict() == before
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in names) is not tied
    checkpoints.load_weights(other, tmp_path)
    again = ClsiForCausalLM.from_pretrained(tmp_path)
    for name, value in source.state_dict().items():
        assert torch.equal(other.state_dict()[name], value) and torch.equal(again.state_dict()[name], value)


def test_weights_of_another_model_are_refused(tmp_path):
    checkpoints.save_weights(model(), tmp_path)
    with pytest.raises(
        ValueError, match=r"weights of another model: it lacks \['model.language_model.layers.1"
    ):
        checkpoints.load_weights(model(layers=2), tmp_path)
    checkpoints.save_weights(model(layers=2), tmp_path)
    with pytest.raises(ValueError, match=r"it lacks \[\] and has \['model.language_model.layers.1"):
        checkpoints.load_weights(model(), tmp_path)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_to_the_same_bits(tmp_path, fused):
    source, other = model(), model()
    optimizer = trained(source, fused=fused)
    checkpoints.save_weights(source, tmp_path)
    checkpoints.save_optimizer(optimizer, source, tmp_path)
    names = set(load_file(tmp_path / "optimizer.safetensors"))
    assert "model.language_model.norm.weight/exp_avg_sq" in names
    assert len(names) == 3 * len(list(source.parameters()))
    checkpoints.load_weights(other, tmp_path)
    resumed = torch.optim.AdamW(other.parameters(), lr=5.0, betas=(0.1, 0.2), fused=fused)
    checkpoints.load_optimizer(resumed, other, tmp_path)
    assert resumed.param_groups[0]["betas"] == (0.9, 0.98)
    assert resumed.param_groups[0]["fused"] is fused
    for network, each in ((source, optimizer), (other, resumed)):
        network(torch.tensor([[5, 3, 3]]), labels=torch.tensor([[5, 3, 3]])).loss.backward()
        each.step()
    for name, value in source.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_an_optimizer_before_its_first_step_has_no_state(tmp_path):
    network = model()
    checkpoints.save_optimizer(trained(network, steps=0), network, tmp_path)
    resumed = trained(network, steps=1)
    checkpoints.load_optimizer(resumed, network, tmp_path)
    assert not resumed.state


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    small, large = model(), model(layers=2)
    checkpoints.save_optimizer(trained(small), small, tmp_path)
    with pytest.raises(ValueError, match=r"optimizer.json has other groups .* checkpoint of another model\?"):
        checkpoints.load_optimizer(trained(large), large, tmp_path)


def test_generators_go_on_where_they_were(tmp_path):
    def draw():
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            float(torch.rand(1)),
        ]

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        draw()  # leaves half a pair of Gaussians in both
        state = checkpoints.random_state()
        checkpoints.save_random_states([{"torch": torch.get_rng_state()}, state], tmp_path)
        expected = [draw(), draw()]
        checkpoints.set_random_state(checkpoints.load_random_state(tmp_path, 1))
        assert [draw(), draw()] == expected
        assert set(checkpoints.load_random_state(tmp_path, 0)) == {"torch"}
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])
