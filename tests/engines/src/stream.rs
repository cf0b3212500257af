//! Streams of the Container Runtime Interface: exec, attach and port-forward over a websocket, as a kubelet passes them on.

use std::{
    fs::File,
    net::{SocketAddr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};
use tungstenite::{Message, WebSocket, client::IntoClientRequest};

/// Connects to an address of another network namespace. The connection stays in that namespace.
pub fn connect(namespace: &Path, address: SocketAddr) -> std::io::Result<TcpStream> {
    let namespace = File::open(namespace)?;
    // The thread is never of use for anything else.
    let connect = move || {
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        TcpStream::connect_timeout(&address, Duration::from_secs(10))
    };
    thread::spawn(connect).join().unwrap()
}

/// A websocket whose messages begin with the number of a channel.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<TcpStream>,
    seen: Vec<Vec<u8>>,
    closed: bool,
}

impl Stream {
    /// Opens the stream that an answer's URL names.
    pub fn open(namespace: &Path, url: &str) -> Self {
        let authority = url.split('/').nth(2).unwrap();
        let tcp = connect(namespace, authority.parse().unwrap()).unwrap();
        tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        tcp.set_write_timeout(Some(e2e::DEADLINE)).unwrap();
        let mut request = url.replacen("http", "ws", 1).into_client_request().unwrap();
        request.headers_mut().insert("Sec-WebSocket-Protocol", "v4.channel.k8s.io".parse().unwrap());
        let mut shake = tungstenite::client(request, tcp);
        let socket = loop {
            match shake {
                Ok((socket, _)) => break socket,
                Err(tungstenite::HandshakeError::Interrupted(more)) => shake = more.handshake(),
                Err(tungstenite::HandshakeError::Failure(reason)) => panic!("{url}: {reason}"),
            }
        };
        Self { socket, seen: vec![Vec::new(); 16], closed: false }
    }

    /// Sends bytes on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        let mut message = vec![channel];
        message.extend(bytes);
        self.socket.send(Message::binary(message)).unwrap();
    }

    /// Tells the size of the terminal.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.send(4, json!({"Width": columns, "Height": rows}).to_string().as_bytes());
    }

    /// What a channel gave until now.
    pub fn seen(&self, channel: u8) -> String {
        String::from_utf8_lossy(&self.seen[usize::from(channel)]).into_owned()
    }

    /// Waits until a channel gave a text, and returns all that it gave.
    #[track_caller]
    pub fn expect(&mut self, channel: u8, text: &str) -> String {
        let end = Instant::now() + e2e::DEADLINE;
        while !self.seen(channel).contains(text) {
            assert!(Instant::now() < end, "channel {channel} does not give {text:?}: {:?}", self.all());
            assert!(!self.closed, "closed before channel {channel} gave {text:?}: {:?}", self.all());
            self.read();
        }
        self.seen(channel)
    }

    /// Waits until the other side closes; the exit code that channel 3 tells.
    #[track_caller]
    pub fn finish(&mut self) -> i64 {
        let end = Instant::now() + e2e::DEADLINE;
        while !self.closed {
            assert!(Instant::now() < end, "the stream is not closed: {:?}", self.all());
            self.read();
        }
        let status: Value = serde_json::from_str(&self.seen(3)).unwrap_or_default();
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok());
        match status["status"].as_str() {
            Some("Success") => 0,
            _ => code.unwrap_or_else(|| panic!("the stream ended with no code: {:?}", self.all())),
        }
    }

    fn all(&self) -> Vec<String> {
        self.seen.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()
    }

    fn read(&mut self) {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) if !bytes.is_empty() => self.seen[usize::from(bytes[0])].extend(&bytes[1..]),
            Ok(_) => {}
            Err(tungstenite::Error::Io(reason))
                if matches!(reason.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => self.closed = true,
        }
    }
}
