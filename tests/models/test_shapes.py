import json

import torch
from torch import nn

from lc_ray.models.shapes import apply, difference


def model(hidden, heads):
    net = nn.Sequential(nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 2))
    net.heads = heads
    return net


def test_a_pruned_model_is_rebuilt_from_json():
    pruned, original = model(3, heads=1), model(8, heads=4)
    shapes, attributes = json.loads(json.dumps(difference(pruned, original)))
    rebuilt = apply(model(8, heads=4), shapes, attributes)
    rebuilt.load_state_dict(pruned.state_dict())
    assert rebuilt.heads == 1
    assert rebuilt[0].out_features == 3
    x = torch.randn(5, 4)
    torch.testing.assert_close(rebuilt.eval()(x), pruned.eval()(x))


def test_an_unpruned_model_has_no_difference():
    assert difference(model(8, 4), model(8, 4)) == ({}, {})


def test_frozen_parameters_stay_frozen():
    target = model(8, 4)
    target[0].weight.requires_grad_(False)
    apply(target, {"0.weight": [3, 4]}, {})
    assert not target[0].weight.requires_grad
