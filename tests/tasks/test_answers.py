"""Answers of every task, against the schema by which the endpoint describes them."""

from types import SimpleNamespace

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tokens import byte_tokenizer

from lc_ray import family

LABELS = ["a", "b", "c"]
WORDS = {"text": {"words": ["New", "York", "sleeps"]}}
BOXES = {"boxes": np.array([[0.1, 0.2, 0.3, 0.4]]), "scores": np.array([0.9]), "labels": np.array([1])}
SPELL = byte_tokenizer("")
SPELL.mask_token = "<user>"
ANSWERS = {  # arguments of the task, what is set on it, an output, the row's parts
    "classification": ({"labels": LABELS}, {}, np.array([1.0, 2.0, -1.0]), {}),
    "multilabel": ({"labels": LABELS}, {}, np.array([1.0, 2.0, -1.0]), {}),
    "regression": ({"mean": 3.0, "std": 2.0}, {}, np.array([0.5]), {}),
    "token_classification": ({"labels": ["B-city", "I-city", "O"]}, {}, np.eye(3), WORDS),
    "text_generation": ({"labelled": False}, {"tokenizer": SPELL}, [70, 71], {}),
    "masked_language_modeling": ({}, {"tokenizer": SPELL}, ([[70, 71]], [[0.7, 0.2]]), {"text": {"text": "good <user>"}}),
    "object_detection": ({"labels": LABELS}, {}, BOXES, {"photo": {"original": [640, 480]}}),
    "speech_recognition": ({}, {"reading": SimpleNamespace(text=SPELL.decode)}, (0.0, [70, 71]), {}),
    "text_to_speech": ({}, {}, np.zeros((8, 80), np.float32), {}),
    "image_generation": ({"size": 8}, {}, np.zeros((8, 8, 3), np.uint8), {}),
}


def test_every_task_is_here():
    assert ANSWERS.keys() == set(family.kinds("tasks"))


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_fit_the_schema(kind):
    arguments, attributes, output, parts = ANSWERS[kind]
    task = family.load("tasks", kind).Task(**arguments)
    for name, value in attributes.items():
        setattr(task, name, value)
    answer, schema = task.decode(output, parts), task.schema()
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(answer)
    assert set(schema["properties"]) == set(schema["required"]) == set(answer)
