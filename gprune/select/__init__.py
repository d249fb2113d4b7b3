"""Selection: from scores and an amount to a threshold, and from a threshold to masks.

Order all candidates by (score, tree index), ascending. Pruning k of them means pruning the first k
in this order. So two numbers determine the masks of a whole model: the score and the tree index of
the k-th candidate. Together they are the *threshold*. The tree index counts the entries of all
leaves, one leaf after the other. This package finds the threshold in five steps:

1. Count the candidates, and turn the amount into k.
2. Draw a sample of the scores. It gives a *bracket*: two scores that probably enclose the k-th.
3. Pass over all scores. Count what is below the bracket, write "above the bracket" into the masks,
   and collect the few candidates inside.
4. Find the k-th candidate among the collected ones: its score, then its tree index. This is a radix
   select, or a sort if a single accelerator has all leaves.
5. Write the masks of the collected candidates.

All scores are compared as integers, their *keys*. A large leaf is streamed in blocks. If a model is
sharded, the counts of all ranks are summed. A small model on the CPU is ranked at once, without a
sample. On an accelerator other operators take the same five steps, so that the host has to read few
values.

    counts.py       an amount or a sparsity -> k; a total -> a count for each leaf, in proportion
    keys.py         order-preserving integer keys for scores
    counter_rng.py  random numbers from a seed, a leaf's number and a flat index
    counting.py     histograms, and counting and finding the true entries of bools
    blocks.py       leaves as a stream of blocks; slices of sharded leaves
    sampling.py     a sample of the scores -> a bracket for each threshold
    partition.py    the passes over all scores: dividing them by brackets, and writing masks
    refine.py       radix select over several processes, by summing counts
    finish.py       the last step: thresholds, and the masks of the candidates inside brackets
    accelerator.py  the sample, the pass and the last step on an accelerator
    kernels.py      the passes over all scores as Triton kernels, for GPUs
    search.py       the five steps together, for several thresholds at once
    outliers.py     the share of the scores of groups of leaves that are far above their mean
    rows.py         pruning each row of a matrix alone
    operators.py    all of this as torch.library operators, with their rules for vmap
    ranks.py        the messages between ranks: summed counts, and errors
    shards.py       the layout of DTensors: which slice of a leaf a rank holds
    dtensors.py     the rules of the operators for DTensors
"""
