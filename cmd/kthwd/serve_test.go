package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"kthwd/appliance/supervise"
)

func TestTimeline(t *testing.T) {
	got := timelineText([]supervise.Status{
		{Name: "etcd", Took: 120 * time.Millisecond, ReadyAt: 130 * time.Millisecond},
		{Name: "kube-apiserver", Took: 2 * time.Second, ReadyAt: 2130 * time.Millisecond},
	}, 2240*time.Millisecond)
	want := "                   took  ready at\n" +
		"etcd              0.12s     0.13s\n" +
		"kube-apiserver    2.00s     2.13s\n" +
		"all ready                   2.24s\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestNotifier(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if n := takeNotifier(); n != nil {
		t.Errorf("without a socket: got %v, want none", n)
	}
	var nobody *notifier
	nobody.ready() // does nothing

	path := filepath.Join(t.TempDir(), "notify")
	systemd, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer systemd.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	n := takeNotifier()
	if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
		t.Errorf("NOTIFY_SOCKET=%s is left to the embedded programs", v)
	}
	n.status("etcd: waiting\nfor quorum")
	n.ready()
	n.stopping()
	for _, want := range []string{"STATUS=etcd: waiting; for quorum", "READY=1\nSTATUS=ready", "STOPPING=1\nSTATUS=stopping"} {
		b := make([]byte, 1024)
		systemd.SetReadDeadline(time.Now().Add(time.Minute))
		size, err := systemd.Read(b)
		if err != nil || string(b[:size]) != want {
			t.Errorf("got %q, %v; want %q", b[:size], err, want)
		}
	}
}
