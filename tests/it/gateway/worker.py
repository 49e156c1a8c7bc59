"""A worker that serves HTTP, for tests: what it is asked says what it does."""
import hashlib, http.server, json, os, sys, threading, time
from urllib.parse import parse_qs, urlsplit

PORT, SLOT = int(sys.argv[1]), int(sys.argv[2])
LOCK = threading.Lock()
NOW = MOST = 0
ORDER = []


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def answer(self, status, body, fields=()):
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        for name, value in fields:
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(body)

    def body(self):
        if 'chunked' not in self.headers.get('Transfer-Encoding', ''):
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        whole = b''
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def do(self):
        try:
            self.act()
        except ConnectionError:
            pass

    def act(self):
        global NOW, MOST
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        what = url.path.strip('/').split('/')
        if what[0] == 'slow':
            with LOCK:
                NOW += 1
                MOST = max(MOST, NOW)
                ORDER.append(asked.get('n'))
            time.sleep(int(asked['ms']) / 1000)
            # Before its answer: whoever has that may be followed by the next one at once.
            with LOCK:
                NOW -= 1
            self.answer(200, json.dumps({'most': MOST, 'order': ORDER}).encode())
        elif what[0] == 'status':
            body = json.dumps({'error': {'message': 'no such line', 'code': 7, 'line': 3}}).encode()
            self.answer(int(what[1]), body, [('X-Own', 'kept'), ('Connection', 'X-Hop'), ('X-Hop', 'gone')])
        elif what[0] == 'die':
            os._exit(13)
        elif what[0] == 'hang':
            if int(asked.get('slot', SLOT)) == SLOT:
                time.sleep(3600)
            self.answer(200, b'{}')
        elif what[0] == 'mirror':
            body = self.body()
            self.answer(200, body, [('X-Digest', hashlib.sha256(body).hexdigest())])
        elif what[0] == 'stream':
            self.send_response(200)
            self.send_header('Connection', 'close')
            self.end_headers()
            for _ in range(int(asked.get('count', 1000000))):
                self.wfile.write(b'x' * 10000)
                time.sleep(0.002)
            self.close_connection = True
        else:
            fields = {name.lower(): value for name, value in self.headers.items()}
            told = {'method': self.command, 'path': self.path, 'fields': fields, 'body': self.body().decode()}
            self.answer(200, json.dumps(told).encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


Server(('127.0.0.1', PORT), Handler).serve_forever()
