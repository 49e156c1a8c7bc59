"""A worker that speaks WebSocket (RFC 6455), its handshake and frames by hand: what it is asked says what it does."""
import base64, hashlib, json, os, socket, struct, sys, threading, time

HEAR = threading.Event()
GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'


def head(link):
    whole = b''
    while not whole.endswith(b'\r\n\r\n'):
        byte = link.recv(1)
        if not byte:
            raise EOFError
        whole += byte
    lines = whole.decode('latin-1').split('\r\n')
    fields = dict(line.lower().split(': ', 1) if ': ' in line else (line, '') for line in lines[1:] if line)
    keys = {line.split(':', 1)[0].lower(): line.split(':', 1)[1].strip() for line in lines[1:] if ':' in line}
    return lines[0].split(' '), {**fields, **keys}


def exactly(link, count):
    whole = bytearray()
    while len(whole) < count:
        part = link.recv(min(count - len(whole), 1 << 16))
        if not part:
            raise EOFError
        whole += part
    return bytes(whole)


def frame(link):
    first, second = exactly(link, 2)
    assert second & 0x80, 'a client masks'
    length = second & 0x7f
    if length == 126:
        length, = struct.unpack('>H', exactly(link, 2))
    elif length == 127:
        length, = struct.unpack('>Q', exactly(link, 8))
    mask = exactly(link, 4)
    data = exactly(link, length)
    keys = (mask * (length // 4 + 1))[:length]
    return first & 0xf, (int.from_bytes(data, 'big') ^ int.from_bytes(keys, 'big')).to_bytes(length, 'big')


def send(link, kind, data):
    link.sendall(bytes([0x80 | kind, 127]) + struct.pack('>Q', len(data)) + data)


def answer(link, status, body, fields=''):
    link.sendall(f'HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{fields}\r\n{body}'.encode())


def serve(link):
    (_, path, _), fields = head(link)
    what = path.split('?')[0].strip('/')
    if what == 'never':
        time.sleep(3600)
    if what == 'unasked':
        return link.sendall(b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nx')
    if what == 'hear':
        HEAR.set()
        return answer(link, '200 OK', 'heard')
    if what == 'refuse':
        return answer(link, '426 Upgrade Required', 'other', 'Upgrade: other\r\n')
    if fields.get('upgrade') != 'websocket':
        return answer(link, '200 OK', json.dumps(fields))
    key = base64.b64encode(hashlib.sha1((fields['sec-websocket-key'] + GUID).encode()).digest()).decode()
    # What it says first may come with its answer.
    early = b'\x81\x02hi' if what == 'early' else b''
    link.sendall(
        b'HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade, X-Hop\r\nX-Hop: gone\r\n'
        b'X-Own: kept\r\nSec-WebSocket-Accept: ' + key.encode() + b'\r\n\r\n' + early)
    if what == 'fields':
        send(link, 1, json.dumps(fields).encode())
    if what == 'deaf':
        HEAR.wait()
    digest, count = hashlib.sha256(), 0
    while True:
        kind, data = frame(link)
        if what == 'die':
            os._exit(13)
        if kind == 8:
            return send(link, 8, data)
        if what == 'deaf':
            digest.update(data)
            count += len(data)
            if data == b'end':
                send(link, 1, json.dumps({'count': count}).encode())
            continue
        send(link, kind, data)


def run(link):
    try:
        serve(link)
    except (EOFError, OSError):
        pass
    finally:
        link.close()


listener = socket.create_server(('127.0.0.1', int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=run, args=(listener.accept()[0],), daemon=True).start()
