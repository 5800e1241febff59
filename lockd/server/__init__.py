"""lockd as a process: sockets, pidfds, LUNs and disks around the machine.

One task per connection turns bytes into events; one task owns the machine and carries out what it
decides (`engine`). `serve` puts everything together and is the only thing that a caller needs.
"""

from lockd.server.exclusive import AlreadyServed
from lockd.server.listener import SocketUnusable
from lockd.server.lun import LunError
from lockd.server.rebuild import DatabaseLost
from lockd.server.serve import Config, serve

__all__ = ["AlreadyServed", "Config", "DatabaseLost", "LunError", "SocketUnusable", "serve"]
