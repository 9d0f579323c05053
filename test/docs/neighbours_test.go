package docs

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"kthwd/test/kthwtest"
)

// neighboursEnv is set in the process that acts as the other machines of a page: two
// controllers behind a load balancer. Its value is the path of their certificate.
const neighboursEnv = "KTHWD_DOCS_NEIGHBOURS"

var neighbours = []string{"10.0.1.73", "10.0.1.35"}

// startNeighbours puts them into a separate network, with a virtual cable to this one.
func startNeighbours(t *testing.T, home string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestNeighbours$", "-test.v", "-test.timeout=0")
	cmd.Env = append(os.Environ(), neighboursEnv+"="+home)
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	life, err := cmd.StdinPipe() // they end when it closes, even if this process is killed
	if err != nil {
		t.Fatal(err)
	}
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		life.Close()
		_ = cmd.Wait()
	})
	run(t, "ip", "link", "add", "kthwd0", "type", "veth", "peer", "name", "kthwd1", "netns", strconv.Itoa(cmd.Process.Pid))
	run(t, "ip", "link", "set", "kthwd0", "up")
	for _, ip := range neighbours {
		run(t, "ip", "route", "add", ip+"/32", "dev", "kthwd0", "src", address)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if lines.Text() == "up" {
			return
		}
	}
	t.Fatalf("the neighbours did not come up: %v", lines.Err())
}

// TestNeighbours is not a test: startNeighbours starts it. Its API servers are TLS
// servers that answer ok.
func TestNeighbours(t *testing.T) {
	home := os.Getenv(neighboursEnv)
	if home == "" {
		t.Skip("is started by TestCommands")
	}
	kthwtest.WaitFor(t, "the cable", kthwtest.Soon, func() error {
		return exec.Command("ip", "link", "set", "kthwd1", "up").Run()
	})
	run(t, "ip", "link", "set", "lo", "up")
	for _, ip := range neighbours {
		run(t, "ip", "address", "add", ip+"/32", "dev", "kthwd1")
	}
	run(t, "ip", "route", "add", address+"/32", "dev", "kthwd1")
	failed := make(chan error, len(neighbours))
	for _, ip := range neighbours {
		s := &http.Server{Addr: ip + ":6443", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })}
		go func() {
			failed <- s.ListenAndServeTLS(filepath.Join(home, "kubernetes.pem"), filepath.Join(home, "kubernetes-key.pem"))
		}()
	}
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	io.WriteString(os.Stdout, "\nup\n")
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}
