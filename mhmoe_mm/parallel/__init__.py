"""Several processes that train one network: what is sharded, and sums over all of them."""
