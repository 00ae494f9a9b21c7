"""The embedding, head and loss of `wronai.vocabulary` beside PEFT's and transformers' own."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from wronai import tokens, vocabulary

ADDED = list(range(90, 100))
SHAPE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
CONFIGS: dict[str, Callable[..., Any]] = {
    "mistral": MistralConfig, "llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("pinned")


def plain(kind: str = "mistral", tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(1)
    config = CONFIGS[kind](**SHAPE, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config, dtype=dtype)


def adapted(kind: str = "mistral", tied: bool = False, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model with LoRA and ten trained rows that have left the rows that they replace, as PEFT makes it."""
    rows = {"embed_tokens": ADDED} if tied else {"embed_tokens": ADDED, "lm_head": ADDED}
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "trainable_token_indices": rows, **changes}
    model = get_peft_model(plain(kind, tied, dtype), LoraConfig(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(2)
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data += 0.1 * torch.randn_like(value)
            assert value.dtype == torch.float32, name
    return model


def batch(rows: int = 2, length: int = 24) -> dict[str, torch.Tensor]:
    """Token ids, a third of them added ones, with labels that begin and end with some that are not supervised."""
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 100, (rows, length), generator=chance)
    ids[:, ::3] = torch.randint(90, 100, ids[:, ::3].shape, generator=chance)
    labels = ids.clone()
    labels[:, :7] = labels[0, -3:] = tokens.IGNORED
    return {"input_ids": ids, "labels": labels}


def outcome(model: Any, **changes: Any) -> dict[str, torch.Tensor]:
    """The loss of a batch, and the gradient of every parameter that is trained."""
    model.zero_grad()
    loss = model(**{**batch(), **changes}).loss
    loss.backward()
    trained = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    return {"loss": loss.detach(), **trained}


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], error: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(
            found[name], value, atol=error, rtol=error, msg=lambda text, at=name: f"{at}: {text}"
        )


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that an operation made, and how many operations made one as large as `counted`."""

    def __init__(self, counted: int) -> None:
        super().__init__()
        self.largest, self.counted, self.times = 0, counted, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, leaf.numel())
                self.times += leaf.numel() >= self.counted
        return made


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_those_of_peft_and_transformers(kind: str, tied: bool) -> None:
    model = adapted(kind, tied)
    expected = outcome(model)
    vocabulary.install(model)
    assert_near(outcome(model), expected)
    assert sum("trainable_tokens" in name for name in expected) == (1 if tied else 2)


@pytest.mark.parametrize("tokens", [1, 2, 7, 31, 1000])
def test_the_size_of_a_chunk_changes_nothing(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    expected = outcome(model)
    vocabulary.install(model)
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", tokens * 4 * 100)
    assert_near(outcome(model), expected)


@pytest.mark.parametrize("items", [17, torch.tensor(17)], ids=["int", "tensor"])
def test_the_loss_is_divided_by_the_items_of_the_whole_batch_when_they_are_given(items: Any) -> None:
    model = adapted()
    expected = outcome(model, num_items_in_batch=items)
    vocabulary.install(model)
    assert_near(outcome(model, num_items_in_batch=items), expected)


def test_labels_that_are_shifted_already_are_taken_as_they_are() -> None:
    model = adapted()
    shifted = batch()["labels"].roll(-2, 1)
    expected = outcome(model, shift_labels=shifted)
    vocabulary.install(model)
    assert_near(outcome(model, shift_labels=shifted), expected)


def test_without_a_supervised_token_the_loss_is_nan_or_0_as_in_transformers_and_no_gradient_is_lost() -> None:
    model = adapted()
    labels = torch.full_like(batch()["labels"], tokens.IGNORED)
    for install in (False, True):
        if install:
            vocabulary.install(model)
        assert model(**{**batch(), "labels": labels}).loss.isnan(), "wronai.training ends with the step that it met"
        found = outcome(model, labels=labels, num_items_in_batch=5)
        assert all((value == 0).all() for value in found.values())


def test_a_step_of_several_batches_is_that_of_transformers_trainer(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    rows = [
        {"input_ids": ids, "labels": labels}
        for seed in range(2)
        for ids, labels in zip(*(value.roll(seed, 1) for value in batch().values()), strict=True)
    ]
    rows[0]["labels"] = torch.where(torch.arange(24) < 20, tokens.IGNORED, rows[0]["labels"])
    found = []
    for install in (False, True):
        model = adapted()
        if install:
            vocabulary.install(model)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=4,
            max_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            optim="sgd",
            lr_scheduler_type="constant",
            learning_rate=0.1,
            neftune_noise_alpha=5.0,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        losses = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
        found.append({"losses": losses, **trained})
    assert_near(found[1], found[0], 1e-5)


def test_logits_without_labels_are_those_of_peft() -> None:
    model = adapted()
    ids = batch()["input_ids"]
    expected = model(input_ids=ids).logits
    vocabulary.install(model)
    found = model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    last = model(input_ids=ids, logits_to_keep=2).logits
    torch.testing.assert_close(last, expected[:, -2:], atol=1e-6, rtol=1e-6)
    assert len(model(input_ids=ids, return_dict=False)[0]) == len(ids)


def test_gradients_through_logits_are_those_of_peft() -> None:
    found = []
    for install in (False, True):
        model = adapted()
        if install:
            vocabulary.install(model)
        model(input_ids=batch()["input_ids"]).logits.square().mean().backward()
        found.append({name: value.grad for name, value in model.named_parameters() if value.requires_grad})
    assert_near(found[1], found[0])


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_it_generates_what_peft_generates(tied: bool) -> None:
    model = adapted(tied=tied).eval()
    prompt = batch()["input_ids"][:, :5]
    expected = model.generate(input_ids=prompt, max_new_tokens=20, do_sample=False, pad_token_id=2)
    vocabulary.install(model)
    found = model.generate(input_ids=prompt, max_new_tokens=20, do_sample=False, pad_token_id=2)
    assert torch.equal(found, expected)
    assert (found >= 90).any(), "an added token is among them"


def test_the_bytes_are_the_same_on_one_thread_and_on_two() -> None:
    torch.manual_seed(4)
    hidden, weight, rows = torch.randn(130, 64), torch.randn(4106, 64), torch.randn(10, 64)
    targets = torch.randint(0, 4106, (130,))
    ids = torch.randint(4090, 4106, (130,))
    embedding, head = vocabulary._Embedding(4106, 64, _weight=weight), vocabulary._Head(64, 4106, bias=False)
    head.weight = embedding.weight.requires_grad_(False)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            leaves = [hidden.clone().requires_grad_(), rows.clone().requires_grad_()]
            own = {"rows": leaves[1], "row_ids": list(range(4096, 4106))}
            loss = head(leaves[0] + embedding(ids, **own), targets=targets, **own)
            loss.backward()
            found.append([loss, *(leaf.grad for leaf in leaves), head(hidden, **own)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_no_tensor_is_as_large_as_the_matrix_or_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    logits, matrix = 2 * 24 * 100, 100 * 32
    with Sizes(matrix) as before:
        outcome(model)
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 5 * 4 * 100)
    vocabulary.install(model)
    with Sizes(matrix) as after:
        outcome(model)
    assert before.largest >= logits and before.times >= 6
    assert after.largest < matrix, "the hidden states of 48 tokens in the feed-forward network are the largest"


def test_an_evaluation_makes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted()
    vocabulary.install(model)
    seen: list[Any] = []
    inner = vocabulary._chunked_cross_entropy

    def watched(*given: Any) -> Any:
        seen.append((given[-1], inner(*given)))
        return seen[-1][1]

    monkeypatch.setattr(vocabulary, "_chunked_cross_entropy", watched)
    with torch.no_grad():
        evaluated = model(**batch()).loss
    trained = model(**batch()).loss
    assert torch.equal(evaluated, trained.detach())
    assert [tuple(wanted) for wanted, _ in seen] == [(False, False, False), (True, False, True)]
    assert seen[0][1][1] == [None, None, None]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_model_without_trained_rows_gets_the_loss_too_and_may_train_its_matrices(tied: bool) -> None:
    model = plain(tied=tied)
    expected = outcome(model)
    vocabulary.install(model)
    found = outcome(model)
    assert "model.embed_tokens.weight" in found
    assert_near(found, expected)


def test_a_model_with_one_end_trained_leaves_the_other_as_it_is() -> None:
    model = adapted(trainable_token_indices={"embed_tokens": ADDED})
    expected = outcome(model)
    vocabulary.install(model)
    assert_near(outcome(model), expected)


def test_bfloat16_matrices_train_float32_rows_as_peft_does() -> None:
    model = adapted(dtype=torch.bfloat16)
    expected = outcome(model)
    vocabulary.install(model)
    found = outcome(model)
    assert_near(found, expected, 2e-2)
    assert model.get_input_embeddings()(batch()["input_ids"]).dtype == torch.bfloat16


def test_under_autocast_the_loss_is_float32_and_near_peft() -> None:
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        expected = outcome(model)
    vocabulary.install(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(model)
    assert_near(found, {**expected, "loss": expected["loss"].float()}, 3e-2)


def test_autocast_does_not_round_the_gradients_of_the_embedding_s_rows() -> None:
    model = adapted()
    vocabulary.install(model)
    embedding, ids = model.get_input_embeddings(), batch()["input_ids"]
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total = embedding(ids).sin().sum()
        total.backward()
        found.append(embedding.token_adapter.trainable_tokens_delta["default"].grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"use_rslora": True}], ids=["dora", "rslora"])
def test_other_kinds_of_lora_train_as_before(changes: dict[str, bool]) -> None:
    model = adapted(**changes)
    expected = outcome(model)
    vocabulary.install(model)
    assert_near(outcome(model), expected)


def test_checkpointed_activations_change_nothing() -> None:
    model = adapted().train()
    expected = outcome(model)
    vocabulary.install(model)
    model.activation_checkpointing_enable({"use_reentrant": False})
    assert_near(outcome(model, use_cache=False), expected)


def test_neftune_finds_the_embedding() -> None:
    model = adapted().train()
    vocabulary.install(model)
    quiet = model(**batch()).loss
    handle = activate_neftune(model, 5.0)
    assert not torch.equal(model(**batch()).loss, quiet)
    deactivate_neftune(model, handle)
    assert torch.equal(model(**batch()).loss, quiet)


def test_a_disabled_adapter_gives_the_base_and_its_loss() -> None:
    model, base = adapted(), plain()
    vocabulary.install(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(**batch()).loss, base(**batch()).loss)
        logits = model(input_ids=batch()["input_ids"]).logits
    assert torch.equal(logits, base(input_ids=batch()["input_ids"]).logits)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_peft_saves_loads_and_merges_as_before(tied: bool, tmp_path: Path) -> None:
    ours, theirs = adapted(tied=tied), adapted(tied=tied)
    vocabulary.install(ours)
    for model, name in ((ours, "ours"), (theirs, "theirs")):
        model.save_pretrained(tmp_path / name, save_embedding_layers=False)
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("ours", "theirs")]
    assert files[0].read_bytes() == files[1].read_bytes()

    loaded = PeftModel.from_pretrained(plain(tied=tied), tmp_path / "ours")
    vocabulary.install(loaded)
    stored = get_peft_model_state_dict(loaded, save_embedding_layers=False)
    assert stored and all(torch.equal(stored[name], value) for name, value in get_peft_model_state_dict(ours).items())

    merged, expected = ours.merge_and_unload(), theirs.merge_and_unload()
    ids = batch()["input_ids"]
    assert torch.equal(merged(input_ids=ids).logits, expected(input_ids=ids).logits)
    assert merged.state_dict().keys() == expected.state_dict().keys()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(again(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_second_installation_changes_nothing() -> None:
    model = adapted()
    vocabulary.install(model)
    names, expected = [name for name, _ in model.named_modules()], outcome(model)
    vocabulary.install(model)
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, expected[name]) for name, value in outcome(model).items())


def through_pickle(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copy_is_a_model_of_its_own(copied: Callable[[Any], Any]) -> None:
    model = adapted()
    vocabulary.install(model)
    expected = outcome(model)
    other = copied(model)
    for value in model.parameters():
        value.data.zero_()
    assert all(torch.equal(value, expected[name]) for name, value in outcome(other).items())


def test_every_weight_is_used_inside_a_call_of_the_module_that_holds_it() -> None:
    """What FSDP needs, which gathers a module's weights when it is called, and lets go of them after."""
    model = adapted()
    vocabulary.install(model)
    expected = outcome(model)["loss"]
    held: dict[Any, Any] = {}

    def gather(module: Any, *_: Any) -> None:
        for value, whole in held[module]:
            value.data = whole

    def release(module: Any, *_: Any) -> None:
        for value, _whole in held[module]:
            value.data = torch.empty(0)

    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            held[end] = [(value, value.data) for value in end.parameters()]
            end.register_forward_pre_hook(gather)
            end.register_forward_hook(release)
            release(end)
        assert torch.equal(model(**batch()).loss, expected)


def test_an_architecture_with_other_logits_is_refused() -> None:
    config = Gemma2Config(**{**SHAPE, "pad_token_id": 0})
    with pytest.raises(ValueError, match=r"of type gemma2.*llama, mistral, qwen2, qwen3"):
        vocabulary.install(AutoModelForCausalLM.from_config(config))


def test_a_head_that_is_adapted_otherwise_is_refused() -> None:
    model = adapted(target_modules=["q_proj", "lm_head"], trainable_token_indices={"embed_tokens": ADDED})
    with pytest.raises(ValueError, match=r"the head is a peft\.tuners\.lora.*Linear; expected torch's Linear"):
        vocabulary.install(model)


def test_a_head_with_a_bias_is_refused() -> None:
    model = plain()
    model.lm_head = torch.nn.Linear(32, 100)
    with pytest.raises(ValueError, match=r"the head is a torch\..*Linear with a bias"):
        vocabulary.install(model)
