package encryption

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"

	"kthwd/appliance/advice"
	"kthwd/appliance/durable"
	"kthwd/appliance/encryption/keyfile"
	"kthwd/appliance/stages"
	"kthwd/appliance/text"
)

// PeerPath is where a controller answers the one that carries a rotation on.
const PeerPath = "/kthwd/encryption"

// askTime bounds a question that needs no look at etcd.
const askTime = 10 * time.Second

// request is a question to a controller. Without content it only asks for the state.
type request struct {
	Check bool   `json:"check,omitempty"` // whether the file could be replaced
	ID    string `json:"id,omitempty"`    // of the rotation
	Data  []byte `json:"data,omitempty"`  // the file to use from now on
	Trial []byte `json:"trial,omitempty"` // a file whose key servers are asked, and which is not kept
}

// Controller is the answer.
type Controller struct {
	stages.Answer
	File  string   `json:"file"`           // hash of encryption-config.yaml
	InUse string   `json:"inUse"`          // hash of the file that the API server uses
	Keys  []string `json:"keys,omitempty"` // of the file; the first one writes
}

// Peer answers the controller that carries a rotation on. Give it to others.Handle.
func (r *Rotation) Peer() http.Handler { return stages.Peer(r.answer) }

// answer does what another controller, or this one, asks for.
func (r *Rotation) answer(ctx context.Context, in request) Controller {
	c := Controller{Answer: stages.Answer{Name: r.cfg.Name}}
	err := r.configured()
	if err == nil && in.Check {
		err = r.replaceable()
	}
	if err == nil && len(in.Trial) > 0 {
		err = r.try(ctx, in.Trial)
	}
	if err == nil && len(in.Data) > 0 {
		err = r.accept(ctx, in)
	}
	if err == nil {
		c.InUse, err = r.gate.InUse()
	}
	if data, failed := os.ReadFile(r.file()); failed == nil {
		c.File = keyfile.Hash(data)
		if f, err := keyfile.Parse(data); err == nil {
			c.Keys = keyfile.Names(f.All())
		}
	}
	if err != nil {
		c.Failed(err)
	}
	return c
}

// configured refuses a controller whose API server has no file that kthwd could change.
func (r *Rotation) configured() error {
	if r.file() == "" {
		return advice.With(errors.New("its API server has no --encryption-provider-config"), "set it to the file that the other controllers have, and restart kthwd")
	}
	return nil
}

// replaceable tries to write beside the file.
func (r *Rotation) replaceable() error {
	if err := durable.Replaceable(r.file()); err != nil {
		return advice.With(fmt.Errorf("%s cannot be replaced: %w", r.file(), err), "make its directory writable for kthwd's user")
	}
	return nil
}

// try asks the key servers of a file.
func (r *Rotation) try(ctx context.Context, data []byte) error {
	life, end := context.WithCancel(ctx)
	defer end()
	c, err := keyfile.Load(life, data, "")
	if err != nil {
		return r.ofFile(err)
	}
	return r.gate.Answers(ctx, c)
}

// accept writes a file and lets the API server use it, if it is that of the rotation's stage.
func (r *Rotation) accept(ctx context.Context, in request) error {
	r.accepting.Lock()
	defer r.accepting.Unlock()
	server := r.cfg.Etcd.Running()
	if server == nil {
		return errors.New("etcd has not started")
	}
	client := v3client.New(server.Server)
	defer client.Close()
	s, err := readState(ctx, r.cfg.Layout, client)
	switch {
	case err != nil:
		return err
	case !s.running() || s.ID != in.ID || s.hash() != keyfile.Hash(in.Data):
		return errors.New("the file is not that of the rotation's stage")
	}
	if _, err := r.gate.InUse(); err != nil {
		return err
	}
	here, err := os.ReadFile(r.file())
	if err != nil {
		return err
	}
	if !slices.Contains(s.Files, keyfile.Hash(here)) {
		return r.edited(r.cfg.Name)
	}
	life, end := context.WithCancel(ctx)
	defer end()
	if _, err := r.gate.Try(ctx, life, in.Data, ""); err != nil {
		return err
	}
	if err := durable.Replace(r.file(), in.Data); err != nil {
		return err
	}
	_, err = r.gate.Load(context.WithoutCancel(ctx)) // what is on the disk is used, also when nobody waits for the answer
	if err == nil {
		r.gate.Loaded()
	}
	return err
}

// edited means that a file has changed by hand during a rotation.
func (r *Rotation) edited(name string) error {
	hint := "copy it from a controller that kthwd encryption status shows with the rotation's file, then run kthwd encryption resume"
	if _, err := os.Lstat(r.next()); err == nil && name == r.cfg.Name {
		hint = fmt.Sprintf("cp %s %s, then run kthwd encryption resume", text.ShellWord(r.next()), text.ShellWord(r.file()))
	}
	return advice.With(fmt.Errorf("%s on %s is not one of this rotation's: it was edited meanwhile", filepath.Base(r.file()), name), hint)
}

// ask asks all controllers, this one first.
func (r *Rotation) ask(ctx context.Context, in request, within time.Duration) ([]Controller, error) {
	return stages.Ask(ctx, r.cfg.Others, PeerPath, in, within, func() Controller { return r.answer(ctx, in) })
}

// next is the file that the controller which began keeps beside the one in use, until the
// rotation ends: the new key exists nowhere else at first.
func (r *Rotation) next() string { return r.file() + ".next" }
