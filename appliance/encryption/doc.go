// Package encryption changes how secrets are stored in etcd while the controllers serve.
//
//	gate := encryption.NewGate(encryption.GateConfig{File: path, Etcd: member, …})
//	gate.Serve(ctx, transformers, hash, id) // by the API server, once it is built
//	go gate.Run(ctx)                        // notices a file that was edited
//	r := encryption.New(encryption.Config{Gate: gate, Others: others, …})
//	go r.Run(ctx)
//
// The API server's own reload believes each file that can be parsed, also one without the
// key of what is stored. The gate takes its place: it tries a file on every value in etcd,
// and only then gives it to the API server.
//
// A rotation passes through the stages of Stage. Each file is written on every controller,
// and the next stage begins when the API server of every one of them uses it, so no
// controller ever meets a value that it cannot read. The old key is dropped when two looks
// at etcd's bytes, further apart than the longest request, have found no value of it.
//
// The state is below /kthwd/encryption in etcd, without any key, and sealed. The new key
// travels from controller to controller, over the connections of package others. The
// controller that holds the right to act carries the rotation on, see package stages; resume on any
// controller that has the new key continues it.
//
// Values are rewritten in etcd directly, each by compare-and-swap, and not through the API:
// no webhook, no conversion and no quota is in the way, and nothing but the resourceVersion
// of an object changes.
package encryption
