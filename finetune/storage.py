def no_room(e):
    return False


def refusal(e, f, n=None):
    return e


def checkpoint_bytes(m):
    return 0


def probe(f):
    return 1e9


def check_room(*a):
    pass


def describe(*a):
    return "saves"
