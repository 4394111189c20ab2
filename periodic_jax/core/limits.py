"""Upper limits on what a run may hold, far above what any run needs."""

MOST_STEPS = 10**8  # more than any run could make
MOST_CONFIGS = 10**5
MOST_LAYERS = 10**4
MOST_EVALUATIONS = 10**6
MOST_JSON = 2**25  # bytes
