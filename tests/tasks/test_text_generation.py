import copy
import functools
import json
import shutil

import numpy as np
import pytest
import torch
from artifacts import save
from pretend import on_a_gpu
from safetensors import safe_open
from tokens import byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lc_ray.errors import DataError, ModelError, SpecError
from lc_ray.evaluate.labelled import evaluate
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, learned, prepare
from lc_ray.models.shapes import difference
from lc_ray.predictor import Predictor
from lc_ray.prune.structured import Pruner
from lc_ray.quantize.int8 import Run
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks._decoder import Whole
from lc_ray.tasks.text_generation import Task, pack

SOUNDS = {"dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "owl": "hoot", "pig": "oink"}
WHOSE = ["The", "A", "My", "Our", "Her", "Every"]
ROWS = [(f"{who} {pet} says", f" {sound}!") for pet, sound in SOUNDS.items() for who in WHOSE]
SEEN, UNSEEN = [row for i, row in enumerate(ROWS) if i % 6 != i // 6], [row for i, row in enumerate(ROWS) if i % 6 == i // 6]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
SHAPE = {"vocab_size": 260, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
tokenizer = functools.partial(byte_tokenizer, TEMPLATE)


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folders of random models: a Llama whose query heads share keys, and a GPT-2, each with its output tied to its embedding."""
    torch.manual_seed(0)
    llama = LlamaConfig(
        hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        max_position_embeddings=128, initializer_range=0.1, **SHAPE,
    )  # fmt: skip
    gpt2 = GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0, **SHAPE)
    folders = {}
    for name, model in {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(folders[name])
        tokenizer().save_pretrained(folders[name])
    return folders


def setting(base, modality="text", labelled=True, max_length=32, **options):
    inputs = [InputSpec(column="prompt", modality=modality, base=str(base), max_length=max_length)]
    columns = load.modalities(inputs)
    task = Task.fit(iter(["x"] if labelled else [None]), Task.Options(**options), columns).bind(columns)
    return inputs, columns, task


def prepared(columns, rows):
    return prepare({"prompt": [prompt for prompt, _ in rows]}, columns) | {TARGET: [target for _, target in rows]}


def train(model, task, columns, rows, steps=150, rate=1e-2):
    optimizer, random = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0), torch.Generator().manual_seed(0)
    data = prepared(columns, rows)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        chosen = torch.randperm(len(rows), generator=random)[:16].tolist()
        inputs, targets = feed({k: [v[i] for i in chosen] for k, v in data.items()}, columns, task, random, training=True)
        loss = task.loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def measured(run, task, columns, rows):
    scores = task.score(run, *feed(prepared(columns, rows), columns, task))
    return task.metrics(scores, [task.encode(target) for _, target in rows])


def forward(model):
    def run(batch):
        with torch.no_grad():
            return model(batch).numpy()

    return run


def generated(model, prompt):
    """A completion by transformers' own greedy decoding, which keeps keys and values between tokens."""
    plain, coder = copy.deepcopy(model.model), tokenizer()
    plain.get_output_embeddings()._forward_pre_hooks.clear()
    ids = coder(prompt, return_tensors="pt")["input_ids"]
    found = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return coder.decode(found[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def trained(request, bases):
    torch.manual_seed(0)
    inputs, columns, task = setting(bases[request.param], max_new_tokens=12)
    model = load.pretrained(ModelSpec(), inputs, task)
    before = measured(forward(model.eval()), task, columns, UNSEEN)
    model = train(model, task, columns, SEEN)
    on_a_gpu(model, task, prepared(columns, SEEN[:4]), columns)
    return model, inputs, columns, task, before


def test_it_learns_to_complete(trained):
    model, _, columns, task, before = trained
    found = measured(forward(model), task, columns, UNSEEN)
    assert before["token_accuracy"] < 0.1
    assert found["token_accuracy"] > 0.9
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["perplexity"] < 2 < 100 < before["perplexity"]


def test_the_artifact_completes_in_text(trained, tmp_path):
    model, inputs, columns, task, _ = trained
    found = save(tmp_path / "model", model, task, inputs)
    with safe_open(found.path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert sum("lm_head" in n or "embed_tokens" in n or "wte" in n for n in names) == 1, "tied weights are written once"
    predictor = Predictor(found, 1)
    assert predictor.engine is not None
    tied = load.open_model(found).model
    assert tied.get_input_embeddings().weight is tied.get_output_embeddings().weight
    answers = predictor.predict([prompt for prompt, _ in UNSEEN])
    assert [a["text"] for a in answers] == [generated(model, prompt) for prompt, _ in UNSEEN]
    assert sum(a["text"] == target for a, (_, target) in zip(answers, UNSEEN, strict=True)) >= 4
    assert json.dumps(answers)
    # a row has one answer whatever its batch
    assert [predictor.predict([prompt])[0] for prompt, _ in UNSEEN] == answers
    # and the artifact's metrics are the model's, over HTTP rows or a file's
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in UNSEEN), "utf-8")
    assert evaluate(predictor, str(rows), "completion")["loss"] == pytest.approx(measured(forward(model), task, columns, UNSEEN)["loss"], abs=1e-5)


def test_loss_is_that_of_transformers(trained):
    """Against its own loss, row by row, prompt tokens masked as its users do."""
    model, _, columns, task, _ = trained
    nats, count = 0.0, 0
    for prompt, completion in UNSEEN:
        ids = tokenizer()(prompt)["input_ids"]
        whole = torch.tensor([ids + tokenizer()(completion)["input_ids"] + [1]])
        labels = whole.clone()
        labels[:, : len(ids)] = -100
        learned = whole.shape[1] - len(ids)
        with torch.no_grad():
            plain = copy.deepcopy(model.model)
            plain.get_output_embeddings()._forward_pre_hooks.clear()
            nats += plain(whole, labels=labels).loss.item() * learned
        count += learned
    assert measured(forward(model), task, columns, UNSEEN)["loss"] == pytest.approx(nats / count, rel=1e-4)


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("labelled", [True, False])
def test_packing_changes_no_loss_and_no_gradient(bases, base, labelled):
    rows = UNSEEN if labelled else [(p + c, None) for p, c in UNSEEN]
    found = []
    for packing in (False, True):
        torch.manual_seed(0)
        inputs, columns, task = setting(bases[base], labelled=labelled, packing=packing, max_length=64)
        model = load.pretrained(ModelSpec(), inputs, task).eval()
        batch, targets = feed(prepared(columns, rows), columns, task, training=True)
        loss = task.loss(model(batch), targets)
        loss.backward()
        found.append((loss.item(), model.model.get_input_embeddings().weight.grad, len(targets)))
    (plain, gradient, sequences), (packed, packed_gradient, fewer) = found
    assert (sequences, fewer) == (6, 2 if labelled else 3) or fewer < sequences
    assert packed == pytest.approx(plain, rel=1e-5)
    torch.testing.assert_close(packed_gradient, gradient, atol=1e-6, rtol=1e-3)


def test_rows_are_packed_where_there_is_room():
    assert pack([5, 3, 8, 2, 4], 10) == [[2, 3], [0, 4], [1]]
    lengths = torch.randint(1, 11, (50,), generator=torch.Generator().manual_seed(0)).tolist()
    packed = pack(lengths, 10)
    assert sorted(i for members in packed for i in members) == list(range(50))
    assert max(sum(lengths[i] for i in members) for members in packed) <= 10


def test_padding_changes_nothing(trained):
    model, _, columns, task, _ = trained
    batch, _ = feed(prepared(columns, UNSEEN[:1]), columns, task)
    reference = forward(model)(batch)
    for sides in ((0, 7), (7, 0)):
        padded = {k: v if k.endswith("asked") else torch.nn.functional.pad(v, sides) for k, v in batch.items()}
        padded["prompt.asked"] = batch["prompt.asked"] + sides[0]
        np.testing.assert_allclose(forward(model)(padded), reference, atol=1e-4)
    padded["prompt.attention_mask"] = torch.ones_like(padded["prompt.attention_mask"])
    assert np.abs(forward(model)(padded) - reference).max() > 1e-2, "the mask must matter, or this shows nothing"


def test_only_the_completion_is_learned_and_both_fit(bases):
    _, columns, task = setting(bases["llama"], max_length=12)
    long = "abcdefghijklmnop"
    batch, targets = feed(prepared(columns, [("ab", "cd"), (long, "xy"), ("ab", long), (long, long)]), columns, task)
    ids, mask = batch["prompt.input_ids"], batch["prompt.attention_mask"]
    decoded = [tokenizer().decode(row[: int(m.sum())]) for row, m in zip(ids, mask, strict=True)]
    assert decoded == ["abcd<end>", "hijklmnop" + "xy<end>", "ababcdefghij", "klmnop" + "abcdef"], "a prompt keeps its end"
    assert [tokenizer().decode(row[row >= 0]) for row in targets] == ["cd<end>", "xy<end>", "abcdefghij", "abcdef"]


def test_all_of_an_unlabelled_text_is_learned(bases):
    _, columns, task = setting(bases["gpt2"], labelled=False, max_length=8)
    numbers, rows = learned({"prompt": ["abc", "abcdefghijk"]}, columns, True)
    assert (numbers, rows["prompt.text"]) == ([0, 1, 1], ["abc", "abcdefgh", "ijk"])
    _, targets = feed(rows | {TARGET: [None] * 3}, columns, task)
    assert [tokenizer().decode(row[row >= 0]) for row in targets] == ["bc<end>", "bcdefgh", "jk<end>"], "a text that goes on has no end"


def test_all_of_long_texts_is_measured(bases, tmp_path):
    inputs, _, task = setting(bases["gpt2"], labelled=False, max_length=8)
    model = Predictor(save(tmp_path / "long", load.pretrained(ModelSpec(), inputs, task), task, inputs), 1)
    (tmp_path / "long.jsonl").write_text('{"prompt": "abcdefghijk"}\n')
    (tmp_path / "short.jsonl").write_text('{"prompt": "abcdefgh"}\n{"prompt": "ijk"}\n')
    (long, short) = (evaluate(model, str(tmp_path / name), None) for name in ("long.jsonl", "short.jsonl"))
    assert long.pop("rows") == 1
    assert short.pop("rows") == 2
    assert long == pytest.approx(short)


def test_conversations_teach_what_the_assistant_says(bases, tmp_path):
    torch.manual_seed(0)
    inputs, columns, task = setting(bases["llama"], "chat", labelled=False, max_length=64, max_new_tokens=12)

    def talk(pet, sound):
        return [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": f"{pet}?"},
            {"role": "assistant", "content": sound},
        ]

    rows = [(talk(*pair), None) for pair in SOUNDS.items()]
    _, targets = feed(prepared(columns, rows[:1]), columns, task)
    assert tokenizer().decode(targets[0]) == "Hello<end>woof<end>"
    model = train(load.pretrained(ModelSpec(), inputs, task), task, columns, rows, 100)
    assert measured(forward(model), task, columns, rows)["token_accuracy"] > 0.95
    predictor = Predictor(save(tmp_path / "chat", model, task, inputs), 1)
    asked = [{"prompt": messages[:-1]} for messages, _ in rows]
    assert [a["text"] for a in predictor.predict(asked)] == list(SOUNDS.values())
    assert predictor.predict([{"prompt": messages} for messages, _ in rows]) == predictor.predict(asked), "the answer that is there is not read"


def test_an_answer_ends_with_its_turn(bases, tmp_path):
    """Many templates end a turn with another token than that which ends a text."""
    torch.manual_seed(0)
    shutil.copytree(bases["llama"], tmp_path / "base")
    turns = tokenizer()
    turns.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>", "<turn>"]})
    turns.chat_template = TEMPLATE.replace("<end>", "<turn>")
    turns.save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(len(turns))
    model.save_pretrained(tmp_path / "base")
    inputs, columns, task = setting(tmp_path / "base", "chat", labelled=False, max_length=64, max_new_tokens=12)
    assert task.tokenizer.convert_ids_to_tokens(task.end) == ["<turn>", "<end>"]
    assert task.tokenizer.decode(task.encode("woof")) == "woof<turn>", "of a conversation and its completion, too"
    rows = [([{"role": "user", "content": pet}, {"role": "assistant", "content": sound}], None) for pet, sound in SOUNDS.items()]
    model = train(load.pretrained(ModelSpec(), inputs, task), task, columns, rows, 100)
    predictor = Predictor(save(tmp_path / "chat", model, task, inputs), 1)
    assert [a["text"] for a in predictor.predict(list(SOUNDS))] == list(SOUNDS.values())


def test_nothing_to_learn_is_an_error(bases):
    inputs, columns, task = setting(bases["llama"], "chat", labelled=False, max_length=64)
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    rows = [([{"role": "user", "content": "Hi"}], None)]
    batch, targets = feed(prepared(columns, rows), columns, task, training=True)
    assert task.loss(model(batch), targets).item() == 0
    with pytest.raises(DataError, match="must end with the assistant"):
        measured(forward(model), task, columns, rows)


def test_temperature_draws_the_same_for_a_row_in_any_batch(trained, bases):
    model, _, columns, _, _ = trained
    _, _, warm = setting(bases["llama"], max_new_tokens=8, temperature=3.0)
    batch = prepare({"prompt": [p for p, _ in UNSEEN]}, columns)
    together, _ = feed(batch, columns, warm)
    answers = warm.answer(forward(model), together)
    alone = [warm.answer(forward(model), feed({k: v[i : i + 1] for k, v in batch.items()}, columns, warm)[0])[0] for i in range(len(UNSEEN))]
    assert answers == alone
    assert max(len(a) for a in answers) <= 8
    assert warm.decode(answers[0], {})["text"] != UNSEEN[0][1]


def test_pruned_and_int8_still_complete(trained, tmp_path):
    model, inputs, columns, task, _ = trained
    original, small = model, copy.deepcopy(model)
    with torch.no_grad():  # a quarter of the neurons is dead, and goes first
        for layer in small.model.base_model.layers if hasattr(small.model.base_model, "layers") else small.model.base_model.h:
            if hasattr(layer.mlp, "down_proj"):
                layer.mlp.down_proj.weight[:, :32] = 0
            else:
                layer.mlp.c_proj.weight[:48] = 0
    batch, targets = feed(prepared(columns, SEEN), columns, task)
    reference = forward(small)(batch)
    pruner = Pruner(small, {k: v[:2] for k, v in batch.items()}, small.keep)
    task.loss(small(batch), targets).backward()
    pruner.observe()
    kept = pruner.remove(0.25)
    assert all(k["after"] == k["before"] * 3 // 4 for k in kept.values()), kept
    assert len(kept) == 2
    np.testing.assert_allclose(forward(small)(batch), reference, atol=1e-4)
    pruned = save(tmp_path / "pruned", small, task, inputs, difference(small, original))
    np.testing.assert_allclose(Predictor(pruned, 1).engine(batch), reference, atol=1e-4)
    rows = prepared(columns, SEEN)
    int8 = Predictor(quantize(pruned, QuantizeSpec(), rows, tmp_path / "int8", "int8"), 1)
    assert 'element_type="i8"' in (int8.artifact.path / "engine" / "model_0.xml").read_text()
    many = {k: v.repeat(12, *[1] * (v.dim() - 1)) for k, v in feed(prepared(columns, [("My", "!")]), columns, task)[0].items()}
    outputs = int8.engine(many)
    np.testing.assert_allclose(outputs, outputs[:1].repeat(12, 0), atol=1e-4, err_msg="more rows than positions")
    exact = Run(int8.artifact.path / "engine", 1, exact=True)  # else rounding to bf16 hides what is wrong
    decoder, whole = exact.decoder(), Whole(lambda sequences, tokens: task._next(exact, sequences, tokens))
    first = []
    for one in (decoder, whole):
        prompts = [one.begin(ids) for ids in ([70, 71], [72] * 9, [73, 74, 75], [76])]
        together = one.read(prompts)
        first.append(torch.stack([one.read([prompt])[0] if logits is None else logits for prompt, logits in zip(prompts, together, strict=True)]))
        for prompt in prompts:
            one.join(prompt)
    assert sum(logits is None for logits in together) == 3, "the one reads them alone"
    torch.testing.assert_close(*first, atol=1e-3, rtol=1e-3)
    for tokens in [[80, 81, 82, 83], [84, 85, 86, 87]]:
        torch.testing.assert_close(decoder.step(tokens), whole.step(tokens), atol=1e-3, rtol=1e-3)
    decoder.leave(1)
    whole.leave(1)
    torch.testing.assert_close(decoder.step([88, 89, 90]), whole.step([88, 89, 90]), atol=1e-3, rtol=1e-3)
    decoder.keep(100)
    long = [70 + i % 9 for i in range(80)]
    again = [[*long, 91, 92], [*long[:70], 93]]
    torch.testing.assert_close(*(one.read([one.begin(long, every=True)])[0] for one in (decoder, whole)), atol=1e-3, rtol=1e-3)
    decoder.read([first := decoder.begin(long)])
    decoder.join(first)
    decoder.leave(3)
    prompts = [decoder.begin(ids) for ids in again]
    assert [prompt.done for prompt in prompts] == [80, 70]
    for prompt, ids in zip(prompts, again, strict=True):
        torch.testing.assert_close(decoder.read([prompt])[0], whole.read([whole.begin(ids)])[0], atol=1e-3, rtol=1e-3)
    right = [task.metrics(p.scores(prepared(columns, UNSEEN)), [])["token_accuracy"] for p in (Predictor(pruned, 1), int8)]
    assert right[1] > right[0] - 0.1
    answers, expected = ([a["text"] for a in p.predict([prompt for prompt, _ in UNSEEN])] for p in (int8, Predictor(pruned, 1)))
    assert sum(a == b for a, b in zip(answers, expected, strict=True)) >= 4


def test_distilling_from_oneself_costs_nothing(bases):
    _, columns, task = setting(bases["llama"])
    _, targets = feed(prepared(columns, UNSEEN), columns, task)
    outputs = torch.randn(*targets.shape, 260)
    assert task.distill(outputs, outputs, targets, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert task.distill(outputs, outputs.flip(-1), targets, 2.0).item() > 0.01
    changed = torch.where((targets == -100)[..., None], 7.0, outputs)
    assert task.distill(outputs, changed, targets, 2.0).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *((cell, "missing") for cell in (None, " ", float("nan"), [{"role": "assistant", "content": "x", "tool_calls": [{}]}])),
        *((cell, "not text but list") for cell in ([3], [{"role": "user", "content": "x"}])),
        (b"\xff", "UTF-8"),
    ],
)
def test_targets_that_are_no_completion(value, message):
    with pytest.raises(DataError, match=message):
        Task.clean(value)
    assert (Task.clean(b" yes"), Task.clean(3), Task.clean([{"role": "assistant", "content": "yes"}])) == (" yes", "3", "yes")


def test_what_does_not_fit_the_model_is_said(bases, tiny_base):
    inputs, columns, task = setting(bases["llama"], max_length=96, max_new_tokens=64)
    with pytest.raises(ModelError, match="reads 128 tokens; this job may give it 160"):
        load.pretrained(ModelSpec(), inputs, task)
    with pytest.raises(SpecError, match="one column of text"):
        Task.fit(iter(["x"]), Task.Options(), columns | {"other": columns["prompt"]})
    inputs = [InputSpec(column="prompt", modality="chat", base=str(tiny_base))]
    with pytest.raises(ModelError, match="no chat template"):
        load.modalities(inputs)
