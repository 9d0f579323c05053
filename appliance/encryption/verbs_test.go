package encryption

import (
	"context"
	"log/slog"
	"os"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/encryption/gate"
	"kthwd/appliance/stages"
	"kthwd/test/etcdtest"
)

// The file that a controller keeps goes when another one has ended the rotation, and not
// before: the new key may be nowhere else.
func TestTidy(t *testing.T) {
	server, l := etcdtest.Start(t, false), layout(t)
	client := etcdtest.Client(t, server)
	r := New(Config{Layout: l, Gate: gate.New(gate.Config{File: l.EncryptionConfig()}), Log: slog.New(slog.DiscardHandler)})
	r.runner = stages.NewRunner(stages.RunnerConfig{Kind: kind, Name: "c0", Client: func() (*clientv3.Client, error) { return v3client.New(server.Server), nil }})
	r.runner.Live(t.Context())
	if err := os.WriteFile(r.next(), []byte(written), 0o600); err != nil {
		t.Fatal(err)
	}
	s := State{ID: "a", Stage: StageRead, Files: []string{"x"}}
	for _, tt := range []struct {
		stage        Stage
		acting, gone bool
	}{{StageRead, false, false}, {StageDone, true, false}, {StageDone, false, true}} {
		s.Stage = tt.stage
		rest := make(chan struct{})
		if err := r.runner.Act(t.Context(), func(ctx context.Context, client *clientv3.Client, h *stages.Hold) (stages.Work, error) {
			wait := func(context.Context, *clientv3.Client, *stages.Hold) error { <-rest; return nil }
			return stages.Work{Stage: wait}, s.save(ctx, l, client, h)
		}); err != nil {
			t.Fatal(err)
		}
		finish := sync.OnceFunc(func() { close(rest); _ = r.runner.Halt(t.Context()) })
		if !tt.acting {
			finish()
		}
		kept, err := os.Lstat(r.next())
		if err != nil {
			t.Fatal(err)
		}
		r.tidy(t.Context(), client, kept)
		if _, err := os.Lstat(r.next()); os.IsNotExist(err) != tt.gone {
			t.Errorf("%+v: got %v", tt, err)
		}
		finish()
	}
}
