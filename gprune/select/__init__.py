"""Selection: from scores and an amount to a cut, and from a cut to masks. The heart of gprune.

A selection is a *cut*. Order all candidates by (score, flat index); pruning k of them means cutting
that order after its k-th element, so two numbers describe the mask of a whole model.

    cut.py        the cut, a named tuple of two tensors
    amounts.py    the law of counts: amount or sparsity -> k
    apportion.py  a total -> a count for each leaf, for `gprune.allocation`
    keys.py       scores -> integers in the same order, NaN on top; the one place that knows floats
    draws.py      a seed -> random scores, the same for an entry wherever it is computed
    boxes.py      where a part of a leaf lies in the whole leaf
    ranking.py    leaves -> chunks in flat order, never more than a block at a time
    sample.py     a few of the candidates -> a guess at where the k-th lies
    passes.py     one stream over all the leaves, divided by a bracket of scores
    flags.py      counting and finding flags, eight at a time
    scratch.py    room for one block after another
    digits.py     the search without a guess: what bounds the worst case, and what accelerators take
    search.py     guess, pass, and at last the cut and the masks
    several.py    several cuts in one search
    rows.py       thousands of small selections at once
    marking.py    a cut -> masks
    operators.py  all of it as torch.library operators, which is how it passes through transforms
    batching.py   what vmap makes of them
    current.py    the public call that is going on, on which ranks must agree
    errors.py     what is wrong with a leaf, by its number
    host.py       where counts meet, and what of the process must not reach into the arithmetic
    sharded/      the same cut where the leaves are DTensors, by exchanging counts
"""
