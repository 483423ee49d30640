// What the scripts of the expert report draw: one run, here the model with what it read last.

const two = false;
const runs = [];
