"""Search over the keys of a configuration: many trainings, one figure of each, the best one."""
