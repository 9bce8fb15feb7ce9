"""Progress bars that leave the process as it was: no thread to watch them, no lock that other processes would share."""

from threading import RLock

from tqdm import tqdm


class Bar(tqdm):
    """tqdm's, without its monitor."""

    monitor_interval = 0


Bar.set_lock(RLock())
