"""Compile a multi-head layer with every router and compare it with the plain one."""

import torch

from tests.moe.routers import ROUTERS
from tests.moe.test_layers import assert_same_load, make, run, sample


def main() -> None:
    for router in ROUTERS:
        layer, (x, keep, kinds) = make(router), sample()
        y, load, grad_x, grads = run(layer, x, keep, kinds)
        torch.compiler.reset()  # every router is another graph of the same code
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        y2, load2, grad_x2, grads2 = run(compiled, x, keep, kinds)
        torch.testing.assert_close((y2, grad_x2), (y, grad_x), atol=1e-5, rtol=1e-4)
        grads2 = {name.removeprefix("_orig_mod."): grad for name, grad in grads2.items()}
        torch.testing.assert_close(grads2, grads, atol=2e-5, rtol=1e-4)
        assert_same_load(load2, load)
        print(router)


if __name__ == "__main__":
    main()
