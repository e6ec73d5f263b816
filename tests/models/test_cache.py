import torch
from transformers import DynamicCache

from lc_ray.models.cache import Rows, held_by


def cached(*lengths):
    """Rows of one layer; each key is its position, of each row another sign."""
    rows = Rows()
    for row, length in enumerate(lengths):
        one = DynamicCache()
        keys = torch.arange(float(length))[None, None, :, None].expand(1, 2, length, 4) * (-1) ** row
        one.update(keys, keys + 0.5, 0)
        rows.join(one, 0, length)
    return rows


def test_a_long_row_leaves_no_room_behind():
    rows = cached(1000, 10, 60)
    assert [tensor.shape for tensor in held_by(rows)] == [(3, 2, 1024, 4)] * 2
    rows.leave(0)
    assert [tensor.shape for tensor in held_by(rows)] == [(2, 2, 64, 4)] * 2
    for row, (length, sign) in enumerate([(60, 1), (10, -1)]):
        ((keys, values),) = rows.row(row)
        torch.testing.assert_close(keys[0, 0, :, 0], sign * torch.arange(float(length)))
        torch.testing.assert_close(values, keys + 0.5)


def test_a_token_has_room_wherever_rows_end():
    rows = cached(64, 3)
    assert rows.advance().tolist() == [[64], [3]]
    fresh = torch.full((2, 2, 1, 4), 7.0)
    keys, values = rows.update(fresh, fresh, 0)
    assert keys.shape == values.shape == (2, 2, 65, 4)
    assert (keys[0, 0, 64, 0], keys[1, 0, 3, 0], keys[1, 0, 2, 0]) == (7, 7, -2)
