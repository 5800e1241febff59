"""The benchmark that people can run (`scripts/bench`): vmfs beside its peers, in one run.

Values and arithmetic: `rows` (what is measured, and its target), `results` (samples to medians,
ratios and verdicts), `report` (Markdown and JSON), `picture`.

What touches the machine: `variants` (mounts all of them), `loads` and `client` (the work),
`lockd_load` and `lockd_client` (lockd alone), `machine` (facts about it), `runner` (the rounds),
`main` (the command).
"""
