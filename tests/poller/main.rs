//! The poller.

#![cfg(target_os = "linux")]

use doorbell::Event;
use doorbell::poll::{Events, Poller, Watch};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn smoke() {
    let poller = Arc::new(Poller::new());
    let event = Arc::new(Event::new(0));
    poller.add(&event, 3, Watch::READABLE).unwrap();
    let mut events = Events::with_capacity(4);
    assert_eq!(poller.wait(&mut events, Some(Duration::ZERO)), Ok(0));
    assert_eq!(poller.wait(&mut events, Some(Duration::from_millis(5))), Ok(0));
    event.signal();
    assert_eq!(poller.wait(&mut events, None), Ok(1));
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    poller.add_fd(&a, 4, Watch::READABLE).unwrap();
    event.read();
    let t = std::thread::spawn({ let (p, e) = (poller.clone(), event.clone()); move || {
        let mut events = Events::with_capacity(4);
        p.wait(&mut events, None).unwrap();
        println!("{events:?}");
        e.try_read();
        p.wait(&mut events, None).unwrap();
        println!("{events:?}");
    }});
    std::thread::sleep(Duration::from_millis(20));
    event.signal();
    std::thread::sleep(Duration::from_millis(20));
    use std::io::Write;
    (&b).write_all(b"x").unwrap();
    t.join().unwrap();
}
