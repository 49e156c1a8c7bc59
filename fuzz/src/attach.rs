//! What is promised of the bytes that an attached client sends, and of those that it is sent.

use std::fmt::Debug;

use halsup::protocol::attach::{CELLS_MAX, Decoder, Frame, FromViewer, PAYLOAD_BYTES_MAX, ToViewer};

/// An upgraded connection: the first byte says in which pieces the rest arrives.
pub fn attach_frame(data: &[u8]) {
    let Some((&how, stream)) = data.split_first() else { return };
    let piece = 1 + usize::from(how);
    for frame in frames::<FromViewer>(stream, piece) {
        match frame {
            FromViewer::Input(bytes) => assert!((1..=PAYLOAD_BYTES_MAX).contains(&bytes.len())),
            FromViewer::Resized(size) => {
                assert!((1..=CELLS_MAX).contains(&size.columns) && (1..=CELLS_MAX).contains(&size.rows));
            }
            FromViewer::InputEnded | FromViewer::Detach => {}
        }
    }
    frames::<ToViewer>(stream, piece);
}

/// Takes out what is there after each piece; the frames are then held against the same stream, cut by hand.
fn frames<F: Frame + Debug + PartialEq>(stream: &[u8], piece: usize) -> Vec<F> {
    let (mut decoder, mut frames, mut failed) = (Decoder::<F>::default(), Vec::new(), None);
    for bytes in stream.chunks(piece) {
        decoder.push(bytes);
        while failed.is_none() {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => failed = Some(error),
            }
        }
        assert!(decoder.waiting_bytes() <= PAYLOAD_BYTES_MAX + 5 + piece, "more waits than one frame and one piece");
    }
    if let Some(error) = failed {
        assert_eq!(decoder.next_frame(), Err(error), "a stream that failed has a meaning again");
        assert_eq!(decoder.waiting_bytes(), 0, "a stream that failed is kept");
    }
    // What was understood is what was said, byte for byte, up to where the meaning ends.
    let said: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    assert!(stream.starts_with(&said), "a frame means something else when it is sent on");
    if failed.is_none() {
        assert_eq!(stream.len() - said.len(), decoder.waiting_bytes());
    }
    frames
}
