//! Decodes fanotify's events: fanotify(7) of Linux 5.17 and later. Pure.

/// A file as `name_to_handle_at(2)` identifies it, with the file system that it is on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Handle {
    pub(super) file_system: [u8; 8],
    pub(super) kind: i32,
    pub(super) bytes: Vec<u8>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) directory: Handle,
    /// "." stands for the directory itself.
    pub(super) name: Vec<u8>,
}

/// One event. Several that happened to the same name can come as one, with the bits of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Event {
    /// FAN_CREATE and so on.
    pub(super) mask: u64,
    /// Of the process that did it; 0 if it is unknown here.
    pub(super) pid: i32,
    /// What it happened to, by name.
    pub(super) entry: Option<Entry>,
    pub(super) object: Option<Handle>,
    /// Of a rename, the name before.
    pub(super) old: Option<Entry>,
    /// Of a rename, the name after.
    pub(super) new: Option<Entry>,
}

/// Bytes of `struct fanotify_event_metadata`.
const METADATA: usize = 24;

/// Bytes of `struct fanotify_event_info_header`.
const HEADER: usize = 4;

/// The events in what one `read(2)` gave. What cannot be understood ends the list.
pub(super) fn decode(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((event, rest)) = one(bytes) {
        events.push(event);
        bytes = rest;
    }
    events
}

fn one(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let metadata_length = usize::from(u16::from_ne_bytes(array(bytes, 6)?));
    if length < metadata_length || metadata_length < METADATA || length > bytes.len() {
        return None;
    }
    let mut event = Event {
        mask: u64::from_ne_bytes(array(bytes, 8)?),
        pid: i32::from_ne_bytes(array(bytes, 20)?),
        ..Event::default()
    };
    let (this, rest) = bytes.split_at(length);
    let mut records = &this[metadata_length..];
    while records.len() >= HEADER {
        let kind = records[0];
        let length = usize::from(u16::from_ne_bytes(array(records, 2)?));
        if length < HEADER || length > records.len() {
            return None;
        }
        let (record, others) = records.split_at(length);
        let body = &record[HEADER..];
        match kind {
            libc::FAN_EVENT_INFO_TYPE_FID => event.object = handle(body).map(|(handle, _)| handle),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => event.entry = entry(body),
            libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => event.old = entry(body),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => event.new = entry(body),
            _ => {}
        }
        records = others;
    }
    Some((event, rest))
}

/// `__kernel_fsid_t`, then `struct file_handle`; and what follows.
fn handle(bytes: &[u8]) -> Option<(Handle, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 8)?).ok()?;
    let end = 16_usize.checked_add(length)?;
    let handle = Handle {
        file_system: array(bytes, 0)?,
        kind: i32::from_ne_bytes(array(bytes, 12)?),
        bytes: bytes.get(16..end)?.to_owned(),
    };
    Some((handle, bytes.get(end..)?))
}

/// A handle, then a name that ends with a zero.
fn entry(bytes: &[u8]) -> Option<Entry> {
    let (directory, rest) = handle(bytes)?;
    let length = rest.iter().position(|byte| *byte == 0)?;
    Some(Entry {
        directory,
        name: rest[..length].to_owned(),
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(array(bytes, at)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(kind: u8, name: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![7_u8; 8];
        body.extend(3_u32.to_ne_bytes());
        body.extend(9_i32.to_ne_bytes());
        body.extend([1, 2, 3]);
        if let Some(name) = name {
            body.extend(name);
            body.push(0);
        }
        body.resize(body.len().next_multiple_of(4), 0);
        let mut record = vec![kind, 0];
        record.extend(u16::try_from(body.len() + HEADER).unwrap().to_ne_bytes());
        record.extend(body);
        record
    }

    fn event(mask: u64, records: &[Vec<u8>]) -> Vec<u8> {
        let records = records.concat();
        let mut bytes = u32::try_from(METADATA + records.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend([3, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(42_i32.to_ne_bytes());
        bytes.extend(records);
        bytes
    }

    #[test]
    fn names_and_renames_are_decoded_in_order() {
        let create = event(
            libc::FAN_CREATE,
            &[record(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, Some(b"..data_tmp"))],
        );
        let rename = event(
            libc::FAN_RENAME,
            &[
                record(libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME, Some(b"..data_tmp")),
                record(libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, Some(b"..data")),
                record(libc::FAN_EVENT_INFO_TYPE_FID, None),
            ],
        );
        let events = decode(&[create, rename].concat());
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].pid, events[0].mask), (42, libc::FAN_CREATE));
        assert_eq!(events[0].entry.as_ref().unwrap().name, b"..data_tmp");
        assert_eq!(events[1].new.as_ref().unwrap().name, b"..data");
        assert_eq!(events[1].object.as_ref().unwrap().bytes, [1, 2, 3]);
        assert_eq!(
            events[1].old.as_ref().unwrap().directory,
            events[1].object.clone().unwrap()
        );
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_ends_the_shim(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            decode(&bytes);
        }

        #[test]
        fn a_record_that_is_cut_short_or_changed_does_not_either(cut in 0_usize..120, at in 0_usize..100, byte: u8) {
            let mut bytes = event(1, &[record(2, Some(b"name")), record(1, None)]);
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
            bytes.truncate(cut);
            decode(&bytes);
        }
    }

    #[test]
    fn fuzz_fanotify() {
        fuzz::run("fanotify", |bytes| drop(decode(bytes)));
    }
}
