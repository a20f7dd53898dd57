"""From a problem to a verdict: what is tried, in which order, and the two branch and bounds."""
