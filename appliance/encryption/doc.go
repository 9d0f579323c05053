// Package encryption changes how secrets are stored in etcd while the controllers serve.
//
//	r := encryption.New(encryption.Config{Gate: gate, Others: others, …})
//	go r.Run(ctx)
//
// Package gate gives the API server its files, package keyfile makes them, and package values looks
// at what etcd has and writes it anew.
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
package encryption
