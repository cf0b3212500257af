//! TCP: a stream in each direction, requests that are answered one after the other, and connections.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::tell;

/// Bytes of a stream.
const STREAM: u64 = 32 << 20;
/// Bytes of one write of a stream.
const CHUNK: usize = 128 << 10;
const REQUESTS: u64 = 200;
const CONNECTIONS: u64 = 20;
/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What a connection is for, as its first byte says.
const TAKE: u8 = b'<';
const GIVE: u8 = b'>';
const ECHO: u8 = b'=';

/// Serves until it is killed.
pub fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            if let Err(problem) = answer(connection) {
                eprintln!("kata-probe: a connection broke: {problem}");
            }
        });
    }
    Ok(())
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    prepare(&connection)?;
    let mut kind = [0];
    connection.read_exact(&mut kind)?;
    match kind[0] {
        TAKE => {
            take(&mut connection)?;
            // Says that all is here.
            connection.write_all(&kind)
        }
        GIVE => give(&mut connection),
        _ => {
            let mut byte = [0];
            while connection.read(&mut byte)? == 1 {
                connection.write_all(&byte)?;
            }
            Ok(())
        }
    }
}

/// Measures all of it against a server.
pub fn measure(address: &str) -> io::Result<()> {
    let mut connection = connect(address, TAKE)?;
    let begun = Instant::now();
    give(&mut connection)?;
    connection.read_exact(&mut [0])?;
    tell("stream out of the pod", begun.elapsed(), STREAM >> 20);

    let begun = Instant::now();
    let mut connection = connect(address, GIVE)?;
    take(&mut connection)?;
    tell("stream into the pod", begun.elapsed(), STREAM >> 20);

    let mut connection = connect(address, ECHO)?;
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        connection.write_all(b"?")?;
        connection.read_exact(&mut [0])?;
    }
    tell("request and response of 1 byte", begun.elapsed(), REQUESTS);

    let begun = Instant::now();
    for _ in 0..CONNECTIONS {
        let mut connection = connect(address, ECHO)?;
        connection.write_all(b"?")?;
        connection.read_exact(&mut [0])?;
    }
    tell("connect, request, response, close", begun.elapsed(), CONNECTIONS);
    Ok(())
}

fn connect(address: &str, kind: u8) -> io::Result<TcpStream> {
    let mut connection =
        TcpStream::connect(address).map_err(|e| io::Error::new(e.kind(), format!("connect to {address}: {e}")))?;
    prepare(&connection)?;
    connection.write_all(&[kind])?;
    Ok(connection)
}

fn prepare(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(SILENCE))?;
    connection.set_write_timeout(Some(SILENCE))
}

fn give(connection: &mut TcpStream) -> io::Result<()> {
    let chunk = vec![b'n'; CHUNK];
    for _ in 0..STREAM / CHUNK as u64 {
        connection.write_all(&chunk)?;
    }
    Ok(())
}

fn take(connection: &mut TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = STREAM;
    while left > 0 {
        let most = chunk.len().min(left as usize);
        match connection.read(&mut chunk[..most])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => left -= read as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_and_a_server_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let connection = connection.unwrap();
                thread::spawn(move || answer(connection));
            }
        });
        measure(&address).unwrap();
    }
}
