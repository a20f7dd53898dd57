"""Branch and bound over the signs of ReLU operands: root, guide, bounder, rules, search."""
