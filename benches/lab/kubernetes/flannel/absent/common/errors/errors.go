// Package errors stands in for a cloud's, as far as flannel names it.
package errors

// TencentCloudSDKError is what the cloud would say.
type TencentCloudSDKError struct{}

func (*TencentCloudSDKError) Error() string { return "this flannel is built without a cloud" }
