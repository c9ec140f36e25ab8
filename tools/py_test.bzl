# Copyright 2026 The HetLoRA-TFF Authors.
# SPDX-License-Identifier: Apache-2.0
"""`py_test` that runs its module under pytest.

The native rule would execute the module as a script, which defines the tests and passes without
having run one.
"""

# The lock stands for the packages that Bazel does not see: a change of it makes every remembered
# result stale.
_INPUTS = ["//:pyproject.toml", "//:requirements.txt"]

def py_test(name, srcs, deps = [], data = [], **kwargs):
    native.py_test(
        name = name,
        srcs = srcs + ["//tests:run_pytest.py"],
        main = "//tests:run_pytest.py",
        args = ["$(location :%s)" % src for src in srcs],
        data = data + [label for label in _INPUTS if label not in data],
        deps = deps + ["//tests:conftest"],
        **kwargs
    )
