"""Selection: from scores and an amount to a threshold, and from a threshold to masks.

Order all candidates by (score, tree index), ascending. To prune k of them is to prune the first k
in this order. So a selection is two numbers, which determine the masks of a whole model: the score
and the tree index of the k-th candidate. The tree index counts the entries of all leaves, one leaf
after the other. This package finds the two numbers in five steps:

1. Count the candidates, and turn the amount into k.
2. Draw a sample of the scores. It gives a *bracket*: two scores that the k-th probably is between.
3. Pass over all scores. Count what is below the bracket, write "above the bracket" into the masks,
   and collect the few candidates inside.
4. Find the k-th candidate among the collected ones by radix select: its score, then its tree index.
5. Write the masks of the collected candidates.

All scores are compared as integers, their *keys*. A large leaf is streamed in blocks. If a model is
sharded, the counts of all ranks are summed. A small model on one CPU needs no sample. On an
accelerator nothing is sampled or collected: passes that count keys in bins narrow the bracket to a
single key, and then the last pruned entry with that key is found.

    counts.py       an amount or a sparsity -> k; a total -> a count for each leaf, in proportion
    keys.py         order-preserving integer keys for scores
    counter_rng.py  random numbers from a seed, a leaf's number and a flat index
    counting.py     histograms, and counting and finding bools
    blocks.py       leaves as a stream of blocks; slices of sharded leaves
    sampling.py     a sample of the scores -> a bracket for each threshold
    partition.py    the passes over all scores: dividing them by brackets, and writing masks
    refine.py       radix select over several processes, by summing counts
    finish.py       the last step: thresholds and masks from the collected candidates
    accelerator.py  the sample, the pass and the last step on an accelerator, in torch operators
    kernels.py      the passes over all scores as Triton kernels, for GPUs
    search.py       the five steps together, for several thresholds at once
    rows.py         one threshold for each row of a matrix
    operators.py    all of this as torch.library operators, with their rules for vmap
    ranks.py        the messages between ranks: summed counts, and errors
    shards.py       the layout of DTensors: which slice of a leaf a rank holds
    dtensors.py     the rules of the operators for DTensors
"""
