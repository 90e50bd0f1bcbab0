from contextlib import contextmanager


class Watchdog:
    def beat(self):
        pass

    @contextmanager
    def paused(self):
        yield

    @contextmanager
    def watching(self, folder, rank=0):
        yield
