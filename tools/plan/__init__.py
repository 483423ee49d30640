"""What a training needs of every GPU, without one: memory, multiply-adds, traffic.

    settings.py    the question: net, task, ranks, batch
    batches.py     batches of a task, made up
    selection.py   how many rows a mask selects where nothing can be counted
    step.py        the training step itself, of one rank of many
    ledger.py      what a step holds in memory and sends
    simulate.py    the step on tensors without content, in a group of ranks that are not there
    measure.py     the step on real ones, in real processes: what the answer is checked against
    table.py       the answer, in words

The plan is no formula: the step that trains runs as it is, sharded as it is, on tensors that have
shapes and no content (torch's FakeTensorMode).
"""
