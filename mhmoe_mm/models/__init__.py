"""Networks and their parts; plain `nn.Module`s."""
