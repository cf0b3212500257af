//! What comes in: frames of a peer that is not trusted.

use crate::channel::Core;
use crate::slot::Half;
use crate::wire::{HEADER, Header, INITIAL_WINDOW, Kind, flag};
use crate::{Error, Violation};

/// Where in the sequence of frames the input stands.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    /// Stream whose data is arriving.
    id: u32,
    /// Bytes of it that are still to come; 0 between frames.
    left: usize,
    /// The stream's half is closed after it.
    fin: bool,
}

impl Payload {
    /// Whether part of a frame has arrived and part has not.
    pub(crate) fn is_partial(&self) -> bool {
        self.left > 0
    }
}

impl Core {
    /// Takes in what has arrived and returns how much of it was used, bytes: all but an incomplete header at its end.
    pub(crate) fn receive(&mut self, payload: &mut Payload, data: &[u8]) -> Result<usize, Error> {
        let mut rest = data;
        loop {
            if payload.left > 0 {
                let (now, after) = rest.split_at(payload.left.min(rest.len()));
                rest = after;
                payload.left -= now.len();
                self.deliver(payload.id, now);
                if payload.left > 0 {
                    break;
                }
                if payload.fin {
                    self.on_fin(payload.id);
                }
            }
            let Some((header, after)) = rest.split_first_chunk::<HEADER>() else { break };
            rest = after;
            self.on_header(Header::decode(header)?, payload)?;
        }
        Ok(data.len() - rest.len())
    }

    fn deliver(&mut self, id: u32, data: &[u8]) {
        // Data for a stream that was dropped here is thrown away; that it was within the window was checked before.
        if let Some(slot) = self.streams.get_mut(&id).filter(|slot| slot.held && !slot.reset) {
            slot.unread.push(data);
            self.wakes.extend(slot.reader.take());
        }
    }

    fn on_header(&mut self, header: Header, payload: &mut Payload) -> Result<(), Error> {
        match header.kind {
            Kind::Ping => {
                if header.has(flag::ACK) {
                    self.answered = Some(header.value);
                } else {
                    self.out.pong(header.value);
                }
                return Ok(());
            }
            Kind::GoAway if header.value == 0 => {
                self.leaving = true;
                return Ok(());
            }
            Kind::GoAway => return Err(Error::GoAway { code: header.value }),
            Kind::Data | Kind::Window => {}
        }
        let id = header.id;
        if header.has(flag::SYN) {
            self.on_syn(id)?;
        } else if !self.was_opened(id) && !header.has(flag::RST) {
            // A reset is let pass: implementations send it for streams they gave up before announcing them.
            return Err(Violation::NeverOpened(id).into());
        }
        if header.kind == Kind::Data {
            self.on_data(header, payload)?;
        } else if let Some(slot) = self.streams.get_mut(&id) {
            slot.send_window = slot.send_window.checked_add(header.value).ok_or(Violation::CreditOverflow(id))?;
            if slot.send_window > 0 {
                self.wakes.extend(slot.writer.take());
            }
        }
        if header.has(flag::RST) {
            self.on_reset(id);
        } else if header.has(flag::FIN) && payload.left == 0 {
            self.on_fin(id);
        }
        Ok(())
    }

    fn on_syn(&mut self, id: u32) -> Result<(), Error> {
        if self.is_own(id) {
            return Err(Violation::ForeignId(id).into());
        }
        if !self.seen.insert(id) {
            return Err(Violation::ReusedId(id).into());
        }
        if !self.admit(id) {
            self.out.refuse(id)?;
            self.tolerated += u64::from(INITIAL_WINDOW);
        }
        Ok(())
    }

    fn on_data(&mut self, header: Header, payload: &mut Payload) -> Result<(), Violation> {
        let (id, announced) = (header.id, header.value);
        if announced > self.limits.max_frame {
            return Err(Violation::FrameTooLong { id, announced, limit: self.limits.max_frame });
        }
        match self.streams.get_mut(&id).filter(|slot| !slot.reset) {
            Some(slot) => {
                if slot.read != Half::Open && announced > 0 {
                    return Err(Violation::DataAfterFin(id));
                }
                slot.recv_window = slot.recv_window.checked_sub(announced).ok_or(Violation::WindowOverrun {
                    id,
                    announced,
                    window: slot.recv_window,
                })?;
            }
            None => {
                self.tolerated =
                    self.tolerated.checked_sub(u64::from(announced)).ok_or(Violation::ClosedOverrun(id))?;
            }
        }
        *payload = Payload { id, left: announced as usize, fin: header.has(flag::FIN) };
        Ok(())
    }
}
