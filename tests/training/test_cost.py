"""Costs of training against numbers worked out by hand, and what autograd really keeps."""

import numpy as np
import pytest
import torch

from hf_clsi import ClsiConfig, ClsiForCausalLM
from hf_clsi.configuration_clsi import SIZES
from hf_clsi.training import cost

# Two layers of width 8: 2 query heads and 1 key head of 4, MLP of 16.
TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
# A layer: q 64, k 32, v 32, o 64, gate, up and down 128 each, two norms of 8; and the last norm.
BODY = 2 * (64 + 32 + 32 + 64 + 3 * 128 + 16) + 8
TABLE = 10 * 8  # 7 units, bos, eos, pad


def shape(**changes):
    return cost.model_shape({**TINY, **changes}, num_units=7)


def test_parameters_of_a_tied_model_count_its_table_once():
    tied = shape()
    assert (tied.parameters, tied.embedding_parameters, tied.body_parameters) == (BODY + TABLE, TABLE, BODY)
    assert tied.matmul_parameters == BODY + TABLE  # the head multiplies, and it is the table


def test_a_table_that_is_only_looked_up_multiplies_nothing():
    untied = shape(tie_word_embeddings=False)
    assert (untied.parameters, untied.embedding_parameters) == (BODY + 2 * TABLE, 2 * TABLE)
    assert untied.matmul_parameters == BODY + TABLE


def test_positions_that_are_learned_are_looked_up():
    learned = cost.model_shape(
        {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32}, num_units=7
    )
    assert learned.lookup_parameters == 32 * 8
    assert learned.intermediate_size == 32
    assert (learned.attention_width, learned.kv_width) == (8, 8)


def test_merges_make_the_vocabulary_larger():
    assert cost.model_shape(TINY, num_units=7, num_merges=5).parameters == BODY + 15 * 8


@pytest.mark.parametrize(
    ("size", "parameters", "embeddings"),
    [("360m", 359_735_808, 2051 * 896), ("1b", 977_346_560, 2051 * 2048)],
)
def test_the_papers_models(size, parameters, embeddings):
    papers = cost.model_shape(SIZES[size]["text_config"])
    assert (papers.parameters, papers.embedding_parameters) == (parameters, embeddings)


def test_a_model_costs_no_memory_to_count_and_leaves_the_callers_config_alone():
    config = dict(TINY)
    cost.model_shape(config, num_units=7)
    assert config == TINY


def test_flops_are_six_a_parameter_and_attention():
    # 12 x 2 layers x 8 wide x 4.5 keys of a causal row of 8
    assert cost.attention_flops_per_token(shape(), 4.5) == 864
    assert cost.training_flops_per_token(shape(), 4.5) == 6 * (BODY + TABLE) + 864


def test_the_attention_of_a_head_that_is_wider_than_its_share():
    wide = shape(head_dim=6)
    assert (wide.attention_width, wide.kv_width) == (12, 6)


def test_context_of_full_rows_of_documents_and_of_given_lengths():
    assert cost.mean_context(2048) == 1024.5
    assert cost.mean_context(2048, 279) == 140
    # of 1 and 5 tokens: 1 key, and 1 + 2 + 3 + 4 + 5 keys, over 6 tokens
    assert cost.mean_context(8, np.array([1, 5])) == pytest.approx(16 / 6)
    assert cost.mean_context(8, np.array([20])) == 4.5  # longer documents are split at the row


def test_flops_of_attention_are_those_that_torch_counts():
    """The forward pass of attention and of all matrix products, counted by torch, without the causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    model = ClsiForCausalLM(ClsiConfig(num_units=7, text_config=TINY))
    model.set_attn_implementation("eager")  # whose products the counter sees on a CPU too
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, 16, dtype=torch.long), use_cache=False)
    per_token = cost.training_flops_per_token(shape(), context=16) / 3  # a third is forward
    norms = 2 * (5 * 8)  # parameters that multiply element by element: not matrix products
    # Some versions of transformers make the angles of rope by a product of matrices, which is counted too.
    assert counter.get_total_flops() / 16 == pytest.approx(per_token - norms, rel=0.002)


def test_speed_and_utilization_are_each_others_inverse():
    speed = cost.tokens_per_second(2e9, "h100", 0.4)
    assert speed == pytest.approx(989e12 * 0.4 / 2e9)
    assert cost.mfu(speed, 2e9, "h100") == pytest.approx(0.4)


def test_gpu_hours():
    device = cost.Gpu("toy", peak_flops=1000.0, memory=1)
    # 7,200 tokens of 100 FLOP at 200 FLOP/s: an hour
    assert cost.gpu_hours(7200, 100, device, mfu=0.2) == pytest.approx(1.0)


def test_unknown_devices_and_shares_are_refused():
    with pytest.raises(ValueError, match=r"unknown GPU 'h300'; choose from a100, .*h200"):
        cost.gpu("h300")
    for share in (0, 1.2):
        with pytest.raises(ValueError, match="share of the peak"):
            cost.tokens_per_second(1.0, "h200", share)
    with pytest.raises(ValueError, match="must be positive"):
        cost.mean_context(8, 0)


def test_state_of_one_gpu_is_sixteen_bytes_a_parameter():
    memory = cost.memory_per_gpu(shape(), 0, 8)
    n = BODY + TABLE
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * n, 4 * n, 8 * n)
    assert (memory.state, memory.working, memory.total) == (16 * n, 2 * n, 18 * n)  # autocast's copy: 2


def test_ddp_has_buckets_beside():
    assert cost.memory_per_gpu(shape(), 0, 8, gpus=2).working == (4 + 2) * (BODY + TABLE)
    assert cost.memory_per_gpu(shape(), 0, 8, gpus=2, dtype="float32").working == 4 * (BODY + TABLE)


def test_fsdp2_divides_the_state_and_gathers_blocks():
    n, block = BODY + TABLE, -(-BODY // 2)
    memory = cost.memory_per_gpu(shape(), 0, 8, gpus=3, strategy="fsdp2")
    assert memory.weights == 4 * -(-n // 3)
    assert memory.working == 2 * (3 * block + TABLE)
    with pytest.raises(ValueError, match="'zero3'"):
        cost.memory_per_gpu(shape(), 0, 8, strategy="zero3")


def _kept_per_token(config, dtype, checkpointing):
    """Bytes that autograd saves for one token more; parameters and autocast's copies of them drop out."""
    model = ClsiForCausalLM(ClsiConfig(num_units=50, text_config=config)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(rows):
        ids = torch.zeros(rows, 64, dtype=torch.long)
        positions = torch.arange(32).repeat(2).expand(rows, -1)
        saved = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive: no address twice
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"),
        ):
            model(input_ids=ids, position_ids=positions, labels=ids)
        return sum(size for size, _ in saved.values())

    return (kept(3) - kept(1)) / (2 * 64)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_layers_keep_what_the_estimate_says(dtype):
    """From 2 to 6 layers, so that what does not grow with them drops out."""

    def config(layers):
        return {**TINY, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": layers}

    def estimate(layers, checkpointing):
        estimated = cost.model_shape(config(layers), num_units=50)
        return cost.activation_bytes_per_token(estimated, 64, dtype, checkpointing)

    for checkpointing in (False, True):
        kept = [_kept_per_token(config(layers), dtype, checkpointing) for layers in (2, 6)]
        expected = estimate(6, checkpointing) - estimate(2, checkpointing)
        assert kept[1] - kept[0] == pytest.approx(expected, rel=0.1)


def test_bytes_on_disk(tmp_path):
    n = BODY + TABLE
    assert cost.model_bytes(shape()) == 4 * n
    assert cost.checkpoint_bytes(shape()) == 12 * n
    assert cost.data_bytes(1_890_000_000) == 3_780_000_000
    ClsiForCausalLM(ClsiConfig(num_units=7, text_config=TINY)).save_pretrained(tmp_path)
    header = 8 + int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert (tmp_path / "model.safetensors").stat().st_size - header == cost.model_bytes(shape())
