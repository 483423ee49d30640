import pytest
import torch

from tests.ranks import run_on_two_ranks
from tests.tasks.batches import captioned
from tests.tasks.two_ranks import ROWS, recording, step


@pytest.mark.dist
def test_two_ranks_have_the_gradient_of_one_process_with_the_whole_batch(tmp_path):
    run_on_two_ranks("tests.tasks.two_ranks", tmp_path)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    expected = step(recording(), captioned(ROWS, same=2))
    for name, gradient in expected.items():
        difference = (found[name] - gradient).abs().max()
        assert difference <= 1e-5 * gradient.abs().max() + 1e-7, name
    assert found["logit_scale"].abs() > 1e-4
    assert found["vision_head.out.weight"].abs().max() > 1e-3
