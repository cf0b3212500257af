//! Connections to the loopback of the pod's namespace.
//!
//! Port-forwarding engines enter the namespace and connect to its loopback, where nobody listens: the processes are
//! in the guest. So connections to it, whatever their port, are redirected to a listener of ours, which learns where they were going.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use netlink::nat::{Redirect, Table};
use tokio::net::{TcpListener, TcpStream};

use crate::error::Error;
use crate::listen::{is_without_ipv6, listen};
use crate::sys;

/// The table's name.
const TABLE: &str = "kata-forward";

/// `IPPROTO_TCP`.
const TCP: u8 = 6;

/// Takes the TCP connections that are made in a namespace to its own loopback.
#[derive(Debug)]
pub struct Forwarder {
    v4: TcpListener,
    /// Absent where the kernel or the namespace has no IPv6.
    v6: Option<TcpListener>,
    _redirect: Table,
}

impl Forwarder {
    /// Takes those of the namespace that the calling thread is in, whose loopback has to be up. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Device`] and [`Error::Kernel`]; the latter on a kernel without nf_tables.
    pub fn open() -> Result<Self, Error> {
        let failed = || Error::device("listen", "on the pod's loopback");
        let port = |listener: &TcpListener| Ok::<_, Error>(listener.local_addr().map_err(failed())?.port());
        let v4 = listen((Ipv4Addr::LOCALHOST, 0).into()).map_err(failed())?;
        let v6 = match listen((Ipv6Addr::LOCALHOST, 0).into()) {
            Err(error) if is_without_ipv6(&error) => None,
            result => Some(result.map_err(failed())?),
        };
        let v6_port = v6.as_ref().map(port).transpose()?;
        let to = |to: IpAddr, bytes, listener| Redirect { to, bytes, protocol: TCP, port: None, listener };
        let mut redirects = vec![to(Ipv4Addr::LOCALHOST.into(), 1, port(&v4)?)];
        redirects.extend(v6_port.map(|port| to(Ipv6Addr::LOCALHOST.into(), 16, port)));
        let redirect = Table::redirect(TABLE, &redirects).map_err(Error::kernel(
            "redirect with nf_tables (which the host's kernel needs)",
            "connections to the pod's loopback",
        ))?;
        Ok(Self { v4, v6, _redirect: redirect })
    }

    /// The next connection, and the port that it was made to. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Device`] if no connection can be taken, e.g. because too many files are open.
    pub async fn accept(&self) -> Result<(TcpStream, u16), Error> {
        loop {
            let (stream, v6) = tokio::select! {
                accepted = self.v4.accept() => (accepted, false),
                accepted = accept(self.v6.as_ref()) => (accepted, true),
            };
            let (stream, _) = stream.map_err(Error::device("accept a connection", "to the pod's loopback"))?;
            // Who has gone away again is not worth an error.
            if let Ok(destination) = sys::original_destination(stream.as_fd(), v6) {
                return Ok((stream, destination.port()));
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
