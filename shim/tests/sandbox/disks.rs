//! Disks come with the first container that uses them and go with the last, whatever happens in between.

use std::sync::atomic::Ordering;

use ttrpc::Code;

use crate::support::hung_file::HungFile;
use crate::support::{Boot, Shim, refusal};

#[tokio::test]
async fn a_disk_of_two_containers_is_plugged_in_once_and_goes_with_the_last() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.create_on("a", &["exit", "0"], &[(&image, false)]).await.unwrap();
    shim.create_on("b", &["exit", "0"], &[(&image, true)]).await.unwrap();
    assert_eq!(shim.guest.serials("a"), ["tatami-1"]);
    assert_eq!(shim.guest.serials("b"), ["tatami-1"]);
    shim.delete("a", "").await.unwrap();
    assert_eq!(shim.guest.disks.plugged(), ["tatami-1"]);
    shim.delete("b", "").await.unwrap();
    assert!(shim.guest.disks.plugged().is_empty());
    // Later it is a new disk.
    shim.create_on("a", &["exit", "0"], &[(&image, true)]).await.unwrap();
    assert_eq!(shim.guest.serials("a"), ["tatami-2"]);
    let (code, message) = refusal(shim.create_on("b", &["exit", "0"], &[(&image, false)]).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(message.contains("read-only"), "{message}");
    shim.delete("a", "").await.unwrap();
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn two_containers_that_come_at_once_share_the_disk() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    let disks = [(image.as_path(), false)];
    let (one, other) = tokio::join!(
        shim.create_on("a", &["exit", "0"], &disks),
        shim.create_on("b", &["exit", "0"], &disks)
    );
    assert!(one.is_ok() && other.is_ok());
    assert_eq!(shim.guest.disks.plugged().len(), 1);
    let (one, other) = tokio::join!(shim.delete("a", ""), shim.delete("b", ""));
    assert!(one.is_ok() && other.is_ok());
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn a_creation_that_fails_takes_its_disks_along() {
    let shim = Shim::new(Boot::Works).await;
    let (first, second) = (shim.image("first"), shim.image("second"));
    let disks = [(first.as_path(), false), (second.as_path(), false)];
    // The guest refuses the container.
    let (code, _) = refusal(shim.create_on("a", &["refused"], &disks).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(shim.guest.disks.plugged().is_empty());
    // There is no place for the second disk.
    shim.guest.disks.places.store(1, Ordering::SeqCst);
    let (code, message) = refusal(shim.create_on("a", &["exit", "0"], &disks).await);
    assert_eq!(code, Code::RESOURCE_EXHAUSTED);
    assert!(message.contains("second") && message.contains("places"), "{message}");
    assert!(shim.guest.disks.plugged().is_empty());
    // The second image is empty.
    shim.guest.disks.places.store(0, Ordering::SeqCst);
    std::fs::write(&second, "").unwrap();
    let (code, message) = refusal(shim.create_on("a", &["exit", "0"], &disks).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("second is empty"), "{message}");
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn a_creation_that_is_given_up_while_a_disk_is_plugged_in_leaves_none() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.guest.disks.slow.send_replace(true);
    let mut begun = shim.guest.disks.begun.subscribe();
    {
        let creating = shim.create_given_up("a", &["exit", "0"], &image);
        tokio::select! {
            _ = creating => panic!("it cannot have finished"),
            _ = begun.wait_for(|begun| *begun == 1) => {}
        }
    }
    shim.guest.disks.slow.send_replace(false);
    shim.host.detached().await;
    assert!(shim.guest.disks.plugged().is_empty());
    // And the name and the image are free.
    shim.create_on("a", &["exit", "0"], &[(&image, false)]).await.unwrap();
    shim.delete("a", "").await.unwrap();
}

#[tokio::test]
async fn a_guest_that_clings_to_a_disk_holds_up_no_deletion_and_is_asked_again() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.create_on("a", &["exit", "0"], &[(&image, false)]).await.unwrap();
    shim.guest.disks.clings.store(true, Ordering::SeqCst);
    shim.delete("a", "").await.unwrap();
    assert_eq!(shim.guest.disks.plugged(), ["tatami-1"]);
    // For the next one it is unplugged first.
    shim.guest.disks.clings.store(false, Ordering::SeqCst);
    shim.create_on("b", &["exit", "0"], &[(&image, false)]).await.unwrap();
    assert_eq!(shim.guest.serials("b"), ["tatami-2"]);
    shim.delete("b", "").await.unwrap();
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn a_disk_that_the_guest_may_let_go_of_at_any_moment_is_given_to_nobody() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.create_on("a", &["exit", "0"], &[(&image, false)]).await.unwrap();
    shim.guest.disks.clings.store(true, Ordering::SeqCst);
    shim.delete("a", "").await.unwrap();
    for _ in 0..2 {
        let (code, message) = refusal(shim.create_on("b", &["exit", "0"], &[(&image, false)]).await);
        assert_eq!(code, Code::FAILED_PRECONDITION);
        assert!(message.contains("the guest has yet to give"), "{message}");
    }
    // It does, late.
    shim.guest.disks.let_go();
    shim.guest.disks.clings.store(false, Ordering::SeqCst);
    shim.create_on("b", &["exit", "0"], &[(&image, false)]).await.unwrap();
    assert_eq!(shim.guest.serials("b"), ["tatami-2"]);
    assert_eq!(shim.guest.disks.plugged(), ["tatami-2"]);
    shim.delete("b", "").await.unwrap();
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn a_disk_that_hangs_on_the_host_holds_up_neither_the_undoing_nor_another_deletion() {
    let shim = Shim::new(Boot::Works).await;
    let (image, other) = (shim.image("image"), shim.image("other"));
    shim.create_on("other", &["exit", "0"], &[(&other, false)])
        .await
        .unwrap();
    let hung = HungFile::new(&image);
    {
        let creating = shim.create_given_up("a", &["exit", "0"], &image);
        tokio::select! {
            () = creating => panic!("it cannot have finished"),
            () = hung.is_opened() => {}
        }
    }
    shim.delete("other", "").await.unwrap();
    shim.host.detached().await;
    assert!(hung.is_waited_for(), "nothing was undone before it was opened");
    // When it goes on, nobody wants it, and the next one gets it.
    drop(hung);
    shim.create_on("b", &["exit", "0"], &[(&image, false)]).await.unwrap();
    assert_eq!(shim.guest.serials("b"), shim.guest.disks.plugged());
    assert_eq!(*shim.guest.disks.begun.borrow(), 2);
    shim.delete("b", "").await.unwrap();
    assert!(shim.guest.disks.plugged().is_empty());
}

#[tokio::test]
async fn a_vm_that_has_ended_is_asked_for_nothing() {
    let shim = Shim::new(Boot::Works).await;
    let image = shim.image("image");
    shim.create_on("a", &["sleep"], &[(&image, false)]).await.unwrap();
    shim.start("a", "").await.unwrap();
    shim.guest.die("QEMU was killed", false);
    assert_eq!(shim.wait("a", "").await.unwrap(), 137);
    shim.delete("a", "").await.unwrap();
    assert_eq!(shim.guest.disks.plugged(), ["tatami-1"], "nobody was asked");
}
