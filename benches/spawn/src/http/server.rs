//! A server that is asked: HTTP/1.1, connections that are kept, as many at once as it has threads.
//!
//! `GET /50` is answered 50 milliseconds later, `GET /0` at once. It knows no other requests, and nothing that has a body.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::Result;
use crate::place::{now, wait_until};

/// Whoever keeps a connection keeps a thread.
const THREADS: usize = 64;
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Serves at a port until it is killed.
pub fn serve(port: &str) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port.parse()?))?;
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                // A job is as long as it is said to be.
                if let Err(errno) = rustix::thread::set_current_timer_slack(Some(std::num::NonZeroU64::MIN)) {
                    eprintln!("have jobs end in time: {errno}");
                }
                while let Ok((stream, _)) = listener.accept() {
                    if let Err(error) = converse(stream) {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });
    Ok(())
}

/// Answers what is asked on one connection.
fn converse(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read(&mut bytes) {
                // Whoever has gone wants nothing any more.
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) if head.len() > HEAD_BYTES_MAX => return Err("a request that is too long".into()),
                Ok(length) => head.extend_from_slice(&bytes[..length]),
            }
            continue;
        };
        let rest = head.split_off(end + 4);
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let closes = text.contains("\r\nconnection: close\r\n");
        let path = text.strip_prefix("get /").ok_or_else(|| format!("no request that is known: {text}"))?;
        let ms: u64 = path.split(' ').next().unwrap_or_default().parse()?;
        if ms > 0 {
            wait_until(now() + ms * 1_000_000);
        }
        let said = if closes { "Connection: close\r\n" } else { "" };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n{said}\r\nok\n");
        if stream.write_all(answer.as_bytes()).is_err() || closes {
            return Ok(());
        }
        head = rest;
    }
}
