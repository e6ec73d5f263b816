import copy
import shutil

import numpy as np
import pytest
import torch
from artifacts import save
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    MobileBertConfig,
    MobileBertForMaskedLM,
)

from lc_ray.errors import ModelError, SpecError
from lc_ray.models import load
from lc_ray.models.batches import TARGET, feed, prepare
from lc_ray.models.shapes import difference
from lc_ray.predictor import Predictor
from lc_ray.prune.structured import Pruner
from lc_ray.quantizer import quantize
from lc_ray.spec import InputSpec, ModelSpec, QuantizeSpec
from lc_ray.tasks.masked_language_modeling import Task

PARTS = [["i", "we", "you"], ["never", "love", "hate"], ["the", "that", "this"], ["flight", "service", "time", "day"]]
TEXTS = [" ".join([a, b, c, d]) for a in PARTS[0] for b in PARTS[1] for c in PARTS[2] for d in PARTS[3]]
SEEN, UNSEEN = [t for i, t in enumerate(TEXTS) if i % 5], TEXTS[::5]


def setting(base, **options):
    inputs = [InputSpec(column="text", base=str(base), max_length=16, **options)]
    columns = load.modalities(inputs)
    return inputs, columns, Task.fit(iter([None]), Task.Options(), columns).bind(columns)


def prepared(columns, texts):
    return prepare({"text": texts}, columns) | {TARGET: [None] * len(texts)}


def forward(model):
    def run(batch):
        with torch.no_grad():
            return model(batch).numpy()

    return run


def measured(run, task, columns, texts):
    return task.metrics(task.score(run, *feed(prepared(columns, texts), columns, task)), [None] * len(texts))


@pytest.fixture(scope="module")
def trained(tiny_base):
    torch.manual_seed(0)
    inputs, columns, task = setting(tiny_base)
    model = load.pretrained(ModelSpec(), inputs, task)
    before = measured(forward(model.eval()), task, columns, UNSEEN)
    optimizer, random, data = torch.optim.AdamW(model.parameters(), lr=5e-3), torch.Generator().manual_seed(0), prepared(columns, SEEN)
    for step in range(180):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / 180)
        chosen = torch.randperm(len(SEEN), generator=random)[:32].tolist()
        batch, targets = feed({k: [v[i] for i in chosen] for k, v in data.items()}, columns, task, random, training=True)
        loss = task.loss(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), inputs, columns, task, before


def test_it_learns_which_words_stand_where(trained):
    """Which of the words stands at a place can't be known, so chance is the best there is: 1 in 3 or 4, of over a hundred tokens."""
    model, _, columns, task, before = trained
    found = measured(forward(model), task, columns, UNSEEN)
    best = (3 * np.log(3) + np.log(4)) / 4
    assert before["loss"] > 4
    assert best - 0.3 < found["loss"] < best + 0.5, found
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]))
    assert found["token_accuracy"] > 0.15


def test_masks_are_filled(trained, tmp_path):
    model, inputs, _, task, _ = trained
    found = save(tmp_path / "m", model, task, inputs)
    one, two, none = Predictor(found, 1).predict(["we love [MASK] day", "[MASK] hate the [MASK]", "i love the day"])
    assert {c["token"] for c in one["masks"][0]["candidates"][:3]} == set(PARTS[2])
    assert one["text"] == f"we love {one['masks'][0]['candidates'][0]['token']} day"
    assert [m["candidates"][0]["token"] in part for m, part in zip(two["masks"], (PARTS[0], PARTS[3]), strict=True)] == [True, True]
    assert "[MASK]" not in two["text"]
    assert none == {"text": "i love the day", "masks": []}
    again = Predictor(found, 1).predict(["we love [MASK] day"])[0]
    assert again["text"] == one["text"]
    assert again["masks"][0]["candidates"][0]["probability"] == pytest.approx(one["masks"][0]["candidates"][0]["probability"], abs=1e-5)


def test_the_recipe_is_berts(tiny_base):
    _, columns, task = setting(tiny_base)
    data = prepared(columns, TEXTS * 40)
    plain, _ = feed({k: v for k, v in data.items() if k != TARGET}, columns, task)
    batch, targets = feed(data, columns, task, torch.Generator().manual_seed(0), training=True)
    real = targets != -100
    before, after = (b["text.input_ids"].gather(1, batch["text.asked"])[real] for b in (plain, batch))
    assert torch.equal(before, targets[real]), "what was there is what is asked for"
    masked, same = after == columns["text"].tokenizer.mask_token_id, after == before
    assert masked.float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert real.sum(1).unique().tolist() == [1], "15 % of 4 words"
    long, wanted = feed(prepared(columns, ["a b c d e f g h i j k l m n"]), columns, task)
    assert (wanted != -100).sum() == 2
    assert long["text.input_ids"][0, 0] == columns["text"].tokenizer.cls_token_id
    changed = (plain["text.input_ids"] != batch["text.input_ids"]).sum(1)
    assert changed.max() == 1, "nothing else is changed"


def test_evaluation_asks_the_same_of_a_row_in_any_batch(tiny_base):
    _, columns, task = setting(tiny_base)
    together, targets = feed(prepared(columns, UNSEEN), columns, task)
    for i in (0, 3, 7):
        alone, target = feed(prepared(columns, UNSEEN[i : i + 1]), columns, task, torch.Generator().manual_seed(i))
        assert torch.equal(alone["text.input_ids"][0], together["text.input_ids"][i])
        assert torch.equal(target[0], targets[i])
    first, again = (feed(prepared(columns, UNSEEN), columns, task, torch.Generator().manual_seed(s), True)[1] for s in (0, 1))
    assert not torch.equal(first, again), "training draws anew"


def test_loss_is_that_of_transformers(trained):
    model, _, columns, task, _ = trained
    batch, targets = feed(prepared(columns, UNSEEN), columns, task)
    labels = torch.full_like(batch["text.input_ids"], -100)
    real = targets != -100
    labels[real.nonzero()[:, 0], batch["text.asked"][real]] = targets[real]
    plain = copy.deepcopy(model.model)
    plain.get_output_embeddings()._forward_pre_hooks.clear()
    with torch.no_grad():
        expected = plain(batch["text.input_ids"], attention_mask=batch["text.attention_mask"], labels=labels).loss.item()
        assert task.loss(model(batch), targets).item() == pytest.approx(expected, rel=1e-5)
    assert measured(forward(model), task, columns, UNSEEN)["loss"] == pytest.approx(expected, rel=1e-5)


def test_pruned_and_int8_still_fill(trained, tmp_path):
    model, inputs, columns, task, _ = trained
    small = copy.deepcopy(model)
    batch, targets = feed(prepared(columns, SEEN), columns, task)
    pruner = Pruner(small, {k: v[:2] for k, v in batch.items()}, small.keep)
    task.loss(small(batch), targets).backward()
    pruner.observe()
    assert any(k["after"] < k["before"] for k in pruner.remove(0.2).values())
    pruned = save(tmp_path / "pruned", small, task, inputs, difference(small, model))
    np.testing.assert_allclose(Predictor(pruned, 1).engine(batch), forward(small)(batch), atol=1e-5)
    dense = save(tmp_path / "dense", model, task, inputs)
    int8 = Predictor(quantize(dense, QuantizeSpec(), prepared(columns, SEEN), tmp_path / "int8", "int8"), 1)
    losses = [task.metrics(p.scores(prepared(columns, UNSEEN)), [])["loss"] for p in (Predictor(dense, 1), int8)]
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert int8.predict(["we love [MASK] day"])[0]["masks"][0]["candidates"][0]["token"] in PARTS[2]


def test_the_tuned_encoder_is_a_base_for_other_tasks(trained, tmp_path):
    model, inputs, columns, task, _ = trained
    folder = load.export(save(tmp_path / "m", model, task, inputs), tmp_path / "hf")
    encoder = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    ids = columns["text"].collate(columns["text"].prepare(UNSEEN[:4]))
    with torch.no_grad():
        expected = model.model.base_model(**ids).last_hidden_state
        torch.testing.assert_close(encoder(**ids).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    from lc_ray.tasks.classification import Task as Classification

    again = load.pretrained(ModelSpec(), [InputSpec(column="text", base=str(folder), max_length=16)], Classification(["a", "b"]))
    torch.testing.assert_close(
        again.encoders["text"].model.embeddings.word_embeddings.weight, model.model.get_input_embeddings().weight, atol=0, rtol=0
    )
    inputs, _, task = setting(folder)
    head = load.pretrained(ModelSpec(), inputs, task)
    assert torch.equal(head.model.cls.predictions.bias, model.model.cls.predictions.bias), "with its head"


def test_what_is_pruned_has_no_hugging_face_format(trained, tmp_path):
    model, inputs, _, task, _ = trained
    small = copy.deepcopy(model)
    small.model.bert.encoder.layer[0].intermediate.dense = torch.nn.Linear(32, 16)
    small.model.bert.encoder.layer[0].output.dense = torch.nn.Linear(16, 32)
    found = save(tmp_path / "m", small, task, inputs, difference(small, model))
    with pytest.raises(ModelError, match="pruned"):
        load.export(found, tmp_path / "hf")


def test_a_base_that_brings_its_head_keeps_it(tiny_base, tmp_path):
    torch.manual_seed(1)
    _, columns, _ = setting(tiny_base)
    whole = BertForMaskedLM(BertConfig(vocab_size=len(columns["text"].tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    torch.nn.init.normal_(whole.cls.predictions.bias)
    whole.save_pretrained(tmp_path)
    columns["text"].tokenizer.save_pretrained(tmp_path)
    inputs, _, task = setting(tmp_path)
    assert torch.equal(load.pretrained(ModelSpec(), inputs, task).model.cls.predictions.bias, whole.cls.predictions.bias)
    inputs, _, task = setting(tmp_path, weights="random")
    assert not torch.equal(load.pretrained(ModelSpec(), inputs, task).model.cls.predictions.bias, whole.cls.predictions.bias)


def test_encoders_of_any_attention_learn(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 200, "pad_token_id": 0}
    DebertaV2ForMaskedLM(DebertaV2Config(**shape, relative_attention=True, pos_att_type=["p2c", "c2p"])).save_pretrained(tmp_path / "base")
    inputs, columns, task = setting(tmp_path / "base")
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    expected = measured(forward(model), task, columns, UNSEEN)
    found = Predictor(save(tmp_path / "model", model, task, inputs), 1)
    assert measured(found.engine, found.task, found.columns, UNSEEN) == pytest.approx(expected, rel=1e-4)


def test_a_head_that_does_not_call_its_layer_is_asked_for_the_same_positions(tiny_base, tmp_path):
    shutil.copytree(tiny_base, tmp_path / "base")
    shape = {"hidden_size": 32, "true_hidden_size": 16, "intra_bottleneck_size": 16, "embedding_size": 8, "intermediate_size": 32}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 200}
    MobileBertForMaskedLM(MobileBertConfig(**shape, **layers)).save_pretrained(tmp_path / "base")
    inputs, columns, task = setting(tmp_path / "base")
    model = load.pretrained(ModelSpec(), inputs, task).eval()
    batch, targets = feed(prepared(columns, TEXTS[:8]), columns, task)
    found = forward(model)(batch)
    assert found.shape[:2] == targets.shape
    with torch.no_grad():
        every = model({name: tensor for name, tensor in batch.items() if name != "text.asked"})
    asked = batch["text.asked"].unsqueeze(-1).expand(-1, -1, every.shape[-1])
    np.testing.assert_allclose(found, every.gather(1, asked).numpy(), atol=1e-5)


def test_a_target_or_a_tokenizer_without_mask_is_refused(tiny_base):
    with pytest.raises(SpecError, match="leave it out"):
        Task.clean("x")
    _, columns, _ = setting(tiny_base)
    columns["text"].tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        Task.fit(iter([None]), Task.Options(), columns)


def test_a_causal_model_is_refused(tiny_base, tmp_path):
    _, _, task = setting(tiny_base)
    GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no language model can be loaded"):
        load.pretrained(ModelSpec(), [InputSpec(column="text", base=str(tmp_path))], task)
