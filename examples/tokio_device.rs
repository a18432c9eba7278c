//! An async device on tokio: it serves kicks, gives up a wait after a time, and is cancelled at the end.

use doorbell::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let kick = Arc::new(Event::new(0));
    let done = Arc::new(Event::new(0));

    let device = tokio::spawn({
        let (kick, done) = (Arc::clone(&kick), Arc::clone(&done));
        async move {
            loop {
                // A read that is dropped at the timeout, or when the task is cancelled, has taken nothing.
                match timeout(Duration::from_millis(5), kick.read_async()).await {
                    Ok(kicks) => done.signal_n(kicks),
                    Err(_) => println!("nothing to do"),
                }
            }
        }
    });

    // A vCPU thread is not a task: it signals, and never waits.
    std::thread::spawn({
        let kick = Arc::clone(&kick);
        move || (0..3).for_each(|_| kick.signal())
    })
    .join()
    .expect("no panic");

    let mut served = 0;
    while served < 3 {
        served += done.read_async().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;

    device.abort();
    assert!(device.await.unwrap_err().is_cancelled());
    kick.signal();
    assert_eq!(kick.try_read(), Some(1)); // the next reader finds it
    println!("served {served} kicks");
}
