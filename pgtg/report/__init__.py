"""From finished runs to findings: `pgtg report`.

    collect     run folders -> scores per example         comparable  what may stand side by side
    rows        config minus seed -> rows with labels     statistics  means, intervals, paired tests
    cost, diagnostics, curves                             what else the folders hold
    build       all of it, as data                        tables, plots, page, poster  its forms

Nothing is trained, sampled or judged here, and no run folder is changed.
"""
