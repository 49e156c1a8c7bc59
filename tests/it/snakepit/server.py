"""A gRPC server that knows nothing of halsup: it does what Snakepit's own servers do, by their flags and variables."""

import argparse
import json
import os
import signal
import threading
from concurrent import futures

import grpc

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--adapter", required=True)
parser.add_argument("--max-workers", type=int, default=4)
for flag in ["--elixir-address", "--snakepit-run-id", "--snakepit-instance-name", "--snakepit-instance-token"]:
    parser.add_argument(flag, required=True)
said = parser.parse_args()

if os.environ.get("SNAKEPIT_PROCESS_GROUP") == "1" and os.getpid() != os.getpgrp():
    os.setsid()
beats = json.loads(os.environ["SNAKEPIT_HEARTBEAT_CONFIG"])


class Service(grpc.GenericRpcHandler):
    """Answers what it was told, whatever it is asked."""

    def service(self, details):
        if details.method == "/snakepit.bridge.BridgeService/Tell":
            return grpc.unary_unary_rpc_method_handler(self.tell)
        return None

    def tell(self, request, context):
        told = dict(vars(said), beats=beats, request=request.decode(), pid=os.getpid())
        told["env"] = {name: value for name, value in os.environ.items() if name.startswith("SNAKEPIT_")}
        return json.dumps(told).encode()



server = grpc.server(futures.ThreadPoolExecutor(said.max_workers), handlers=[Service()])
port = server.add_insecure_port(f"[::]:{said.port}")
server.start()
ready = os.environ["SNAKEPIT_READY_FILE"]
with open(ready + ".tmp", "w") as handle:
    handle.write(str(port))
    handle.flush()
    os.fsync(handle.fileno())
os.replace(ready + ".tmp", ready)
over = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: over.set())
over.wait()
server.stop(2).wait()
